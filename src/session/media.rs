//! The media family: metadata of media messages (BIMip-Foundation 5.9.1 MediaPayloadRequest; protocol.md §7). The files
//! themselves are stored elsewhere.

use crate::limits::MEDIA_BYTES_MAX;
use crate::store::{Content, NewMessage};
use crate::wire::proto::MediaPayloadRequest;
use crate::wire::{CAPTION_BYTES_MAX, ChatId, ErrorCode, LocalId, MediaType, URL_BYTES_MAX};

use super::chat::echo;
use super::fault::Fault;
use super::{Now, Origin, Session};

impl Session {
    /// Accepts a media message like a text. Its VersionUpdate and ChatMessage go on the chat lane.
    pub(super) fn media_payload(&mut self, origin: Origin, media: MediaPayloadRequest, now: Now) -> Result<(), Fault> {
        let local = echo(&media.message_id_local);
        self.check_media(media, now).map_err(|fault| fault.details(local)).map(|message| self.accept(origin, message))
    }

    fn check_media(&self, media: MediaPayloadRequest, now: Now) -> Result<NewMessage, Fault> {
        let parties = self.check_parties(media.from.as_ref(), &media.to)?;
        let local_id = LocalId::parse(&media.message_id_local)?;
        let kind = MediaType::from_code(media.r#type)
            .ok_or_else(|| Fault::malformed("type is 1 image, 2 audio, 3 video or 4 file"))?;
        if !media.chat_id.is_empty() && ChatId::parse(&media.chat_id)? != ChatId::between(&parties.0, &parties.2) {
            return Err(Fault::malformed("chat_id is another chat's"));
        }
        if media.caption.len() > CAPTION_BYTES_MAX {
            return Err(Fault::new(ErrorCode::TooLarge, "caption is longer than 1 KiB"));
        }
        if !(0..=MEDIA_BYTES_MAX).contains(&media.media_size_bytes) {
            return Err(Fault::malformed("media_size_bytes is 0 to 4 GiB"));
        }
        if !media.thumbnail_url.is_empty() && !is_https(&media.thumbnail_url) {
            return Err(Fault::malformed("thumbnail_url is empty or an https address"));
        }
        let url = resolve(&media.cdn_url_id, self.services.settings.media_base.as_deref())?;
        let content = Content::Media {
            kind,
            url,
            caption: media.caption,
            thumbnail_url: media.thumbnail_url,
            size_bytes: media.media_size_bytes,
        };
        Ok(self.new_message(parties, local_id, content, media.created_at, now))
    }
}

/// Returns an https address as it is, and appends an id to the configured base.
fn resolve(cdn_url_id: &str, base: Option<&str>) -> Result<String, Fault> {
    if cdn_url_id.is_empty() {
        return Err(Fault::malformed("cdn_url_id is missing"));
    }
    if is_https(cdn_url_id) {
        return Ok(cdn_url_id.to_owned());
    }
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'~' | b'/');
    let is_id = cdn_url_id.len() <= URL_BYTES_MAX
        && cdn_url_id.bytes().all(legal)
        && !cdn_url_id.starts_with('/')
        && cdn_url_id.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    match base {
        Some(base) if is_id => Ok(format!("{}/{cdn_url_id}", base.trim_end_matches('/'))),
        None if is_id => {
            Err(Fault::malformed("cdn_url_id is an id, but the server has no media.cdn_base; send an https address"))
        }
        _ => Err(Fault::malformed("cdn_url_id is an https address or an id")),
    }
}

fn is_https(url: &str) -> bool {
    // Schemes are case-insensitive (RFC 3986, 3.1).
    let (scheme, rest) = url.split_at_checked("https://".len()).unwrap_or_default();
    let host = Some(rest)
        .filter(|_| scheme.eq_ignore_ascii_case("https://"))
        .map_or("", |rest| rest.split(['/', '?', '#']).next().unwrap_or(""));
    !host.is_empty() && url.len() <= URL_BYTES_MAX && url.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Output;
    use crate::session::testing::{House, payload};
    use crate::store::Write;
    use crate::store::testing::{device, eid};
    use crate::wire::{Lane, Payload};

    #[test]
    fn addresses_stay_and_ids_are_resolved() {
        let base = Some("https://cdn.example/media/");
        assert_eq!(resolve("https://x.example/a?b=c", base).unwrap(), "https://x.example/a?b=c");
        assert_eq!(resolve("HTTPS://x.example", base).unwrap(), "HTTPS://x.example");
        assert_eq!(resolve("2026/11/cat.png", base).unwrap(), "https://cdn.example/media/2026/11/cat.png");
        for bad in
            ["", "http://x.example/a", "https://", "HTTPS:/ü", "/etc", "a/../b", "a b", "javascript:alert(1)", "a//b"]
        {
            assert!(resolve(bad, base).is_err(), "{bad}");
        }
        assert!(resolve("cat.png", None).is_err());
    }

    #[tokio::test]
    async fn addresses_and_ids_have_2048_bytes_at_most() {
        let house = House::new(|settings, _| settings.media_base = Some("https://cdn.example".into()));
        let alice = eid("alice");
        let mut phone = house.bare(&alice, &device("phone")).await;
        let long = |start: &str, bytes: usize| format!("{start}{}", "x".repeat(bytes - start.len()));
        let (address, id) = (|bytes| long("https://x.example/", bytes), |bytes| long("", bytes));
        let media = [
            (address(2048), String::new(), true),
            (address(2049), String::new(), false),
            (id(2048), String::new(), true),
            (id(2049), String::new(), false),
            ("cat".into(), address(2048), true),
            ("cat".into(), address(2049), false),
        ];
        for (number, (cdn_url_id, thumbnail_url, taken)) in media.into_iter().enumerate() {
            let media = MediaPayloadRequest {
                from: Some(alice.identity()),
                to: vec![eid("bob").identity()],
                message_id_local: format!("local-{number}"),
                r#type: 1,
                cdn_url_id,
                thumbnail_url,
                ..MediaPayloadRequest::default()
            };
            phone.hear(Lane::Media, Payload::MediaPayloadRequest(media));
            match &phone.outputs()[..] {
                [Output::Write(_, Write::Accept(..))] if taken => {}
                [Output::Send(Lane::Media, frame)] if !taken => {
                    assert!(matches!(payload(frame), Payload::ErrorMessage(error) if error.code == 400));
                }
                other => panic!("{number}: {other:?}"),
            }
        }
    }
}
