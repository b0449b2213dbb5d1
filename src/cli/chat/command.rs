//! Parses an entered line as a message or a command.

use crate::client::{Content, Media};
use crate::wire::{AwarenessStatus, Eid, MediaType};

/// An entered line.
#[derive(Debug, PartialEq)]
pub(super) enum Line {
    Nothing,
    Say(Content),
    To(Eid),
    Admit(Eid),
    Status(AwarenessStatus),
    Reconnect,
    Help,
    Quit,
}

/// Commands and keys with their meanings, for `/help`.
pub(super) const HELP: [(&str, &str); 17] = [
    ("/to bob@localhost", "open a conversation"),
    ("/media URL [caption]", "send a picture or file by its address"),
    ("/admit bob@localhost", "let somebody see your presence"),
    ("/status away", "or online, busy, invisible, …"),
    ("/reconnect", "try again now (ctrl-r)"),
    ("/quit", "leave (ctrl-c)"),
    ("", ""),
    ("tab, shift-tab", "next and previous conversation"),
    ("page up, page down", "older and newer messages"),
    ("up, down", "what you wrote before"),
    ("ctrl-u, ctrl-w", "erase the line, a word"),
    ("alt-enter", "a new line in the message"),
    ("", ""),
    ("◷", "on its way to the server"),
    ("✓", "the server has it"),
    ("✓✓", "a device of the other has it"),
    ("✓✓ in colour", "it was read"),
];

impl Line {
    /// Parses a line; an error says why it is not valid.
    pub(super) fn parse(text: &str) -> Result<Line, String> {
        let Some(command) = text.strip_prefix('/') else {
            let blank = text.trim().is_empty();
            return Ok(if blank { Line::Nothing } else { Line::Say(Content::Text(text.to_owned())) });
        };
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = rest.trim();
        let eid = || Eid::parse(rest).map_err(|_| format!("/{name} takes a user, as in /{name} bob@localhost"));
        match name {
            "to" => eid().map(Line::To),
            "admit" => eid().map(Line::Admit),
            "media" => media(rest).map(|media| Line::Say(Content::Media(media))),
            "status" => AwarenessStatus::ALL
                .iter()
                .find(|status| status.name() == rest && !matches!(status, AwarenessStatus::Unknown))
                .map(|status| Line::Status(*status))
                .ok_or_else(|| "/status takes online, away, busy, do_not_disturb, invisible or idle".to_owned()),
            "reconnect" => Ok(Line::Reconnect),
            "help" => Ok(Line::Help),
            "quit" | "q" | "exit" => Ok(Line::Quit),
            // As in other chats, a double slash begins a message that starts with a slash.
            _ if name.starts_with('/') => Ok(Line::Say(Content::Text(command.to_owned()))),
            _ => Err(format!("there is no /{name}: see /help")),
        }
    }
}

fn media(rest: &str) -> Result<Media, String> {
    let (url, caption) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    if url.is_empty() {
        return Err("/media takes an https address, as in /media https://example.org/cat.jpg A cat".to_owned());
    }
    let path = url.split(['?', '#']).next().unwrap_or(url);
    let ending = path.rsplit_once('.').map_or(String::new(), |(_, ending)| ending.to_ascii_lowercase());
    let kind = match ending.as_str() {
        "jpg" | "jpeg" | "png" | "gif" | "webp" | "heic" | "avif" | "svg" => MediaType::Image,
        "mp3" | "ogg" | "opus" | "m4a" | "wav" | "flac" | "aac" => MediaType::Audio,
        "mp4" | "mov" | "webm" | "mkv" | "avi" => MediaType::Video,
        _ => MediaType::File,
    };
    Ok(Media {
        kind,
        url: url.to_owned(),
        caption: caption.trim().to_owned(),
        thumbnail_url: String::new(),
        size_bytes: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_or_commands() {
        let says = |text: &str| Line::Say(Content::Text(text.to_owned()));
        assert_eq!(Line::parse("hi /to you"), Ok(says("hi /to you")));
        assert_eq!(Line::parse("//me waves"), Ok(says("/me waves")));
        assert_eq!(Line::parse("  "), Ok(Line::Nothing));
        assert_eq!(Line::parse("/to bob@x"), Ok(Line::To(Eid::parse("bob@x").unwrap())));
        assert_eq!(Line::parse("/status away"), Ok(Line::Status(AwarenessStatus::Away)));
        assert_eq!(Line::parse("/quit"), Ok(Line::Quit));
        for wrong in ["/to", "/to bob", "/media", "/status asleep", "/status unknown", "/nothing"] {
            assert!(Line::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn media_are_told_by_their_address() {
        let Ok(Line::Say(Content::Media(media))) = Line::parse("/media https://x/cat.JPG?w=1  a cat ") else {
            panic!()
        };
        assert_eq!(
            (media.kind, media.url.as_str(), media.caption.as_str()),
            (MediaType::Image, "https://x/cat.JPG?w=1", "a cat")
        );
        let Ok(Line::Say(Content::Media(media))) = Line::parse("/media https://x/paper") else { panic!() };
        assert_eq!(media.kind, MediaType::File);
    }
}
