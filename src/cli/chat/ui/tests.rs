//! The chat's screens, as text.

use std::time::{Duration, Instant};

use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::*;
use crate::cli::chat::app::Happening;
use crate::client::{AckTarget, Event, Media, Message, Session, State, Transport};
use crate::wire::proto::AwarenessNotification;
use crate::wire::{AckStatus, Author, ChatId, DeviceId, Eid, LocalId, MediaType, MessageId, Sequence, Version};

const WIDTH: u16 = 72;
const HEIGHT: u16 = 14;

fn eid(name: &str) -> Eid {
    Eid::parse(&format!("{name}@localhost")).unwrap()
}

fn screen(app: &App, width: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, HEIGHT)).unwrap();
    terminal.draw(|frame| _ = draw(frame, app, &TimeZone::UTC)).unwrap();
    let buffer = terminal.backend().buffer();
    let row = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
    (0..HEIGHT).map(row).collect()
}

/// Alice's chat, with messages of every kind.
fn app() -> App {
    let mut app = App::new(eid("alice"), DeviceId::parse("cli-chat").unwrap());
    app.update(Happening::State(State::Connected(Session {
        session_id: "7f3a9c1e55aa".to_owned(),
        server: "bimip".to_owned(),
        server_time: 0,
        log_head: Sequence::ZERO,
        resume_from: Sequence::ZERO,
        transport: Transport::Quic,
        early: false,
        gap: false,
        token_expires_at: 0,
        connected_in: Duration::from_micros(1_240),
    })));
    app.open(&eid("bob"));
    let media = Media {
        kind: MediaType::Image,
        url: "https://x/cat.jpg".to_owned(),
        caption: "A cat".to_owned(),
        thumbnail_url: String::new(),
        size_bytes: 0,
    };
    let text = |text: &str| Content::Text(text.to_owned());
    let messages = vec![
        message("bob", 1, false, text("Hi Alice, where are you? I have been waiting for quite a while.")),
        message("bob", 2, true, text("On the train.")),
        message("bob", 3, true, Content::Media(media)),
        message("bob", 4, false, text("Nice \u{1b}[31m你好")),
    ];
    app.update(Happening::History { peer: eid("bob"), messages, complete: true });
    app.update(Happening::Event(Event::Message(message("carol", 1, false, text("hey")))));
    let chat = ChatId::between(&eid("alice"), &eid("bob"));
    for (version, status) in [(2, AckStatus::Read), (3, AckStatus::Delivered)] {
        app.update(Happening::Event(Event::Acknowledged(crate::client::Acknowledged {
            sequence: Sequence::ZERO,
            by: eid("bob"),
            sender: eid("alice"),
            target: AckTarget::UpTo(chat, Version::from(version)),
            status,
            timestamp: 0,
        })));
    }
    app.update(Happening::Composed {
        to: eid("bob"),
        local_id: LocalId::parse("1").unwrap(),
        content: text("Soon there"),
        at: 86_400_000,
    });
    let online = AwarenessNotification { from: Some(eid("bob").identity()), status: 1, ..Default::default() };
    app.update(Happening::Event(Event::Presence(online)));
    app
}

fn message(peer: &str, version: u64, own: bool, content: Content) -> Message {
    let (from, to) = if own { (eid("alice"), eid(peer)) } else { (eid(peer), eid("alice")) };
    let at = 3_600_000 + version as i64 * 60_000;
    Message {
        sequence: Sequence::ZERO,
        author: if own { Author::Sender } else { Author::Receiver },
        message_id: MessageId::new(at, [1; 10]),
        local_id: None,
        chat_id: ChatId::between(&from, &to),
        version: Version::from(version),
        from,
        from_device: None,
        to,
        content,
        acknowledgment: if own { AckStatus::Sent } else { AckStatus::Unread },
        created_at: at,
        server_received_at: at,
        received: Instant::now(),
    }
}

#[test]
fn a_conversation_with_ticks_media_days_and_the_list() {
    // Control characters are dropped; a wide character takes two cells, and the second is a blank here.
    let expected = [
        " alice@localhost         │ bob@localhost  ● online",
        "                         │──────────────────────────────────────────────",
        " ● bob@localhost         │ 01:01 Hi Alice, where are you? I",
        "   carol@localhost     1 │       have been waiting for",
        "                         │       quite a while.",
        "                         │                       On the train. 01:02 ✓✓",
        "                         │                   [image] A cat",
        "                         │                   https://x/cat.jpg 01:03 ✓✓",
        "                         │ 01:04 Nice [31m你 好",
        "                         │            ── Friday 2 January ──",
        "                         │                          Soon there 00:00 ◷",
        "                         │──────────────────────────────────────────────",
        "                         │ › write a message, /help for more",
        " ● connected  1.2 ms  QUIC, session 7f3a9c1e  1 unread  cli-chat  /help",
    ];
    assert_eq!(screen(&app(), WIDTH), expected);
}

#[test]
fn a_narrow_terminal_shows_the_conversation_alone() {
    let screen = screen(&app(), 40).join("\n");
    assert!(!screen.contains("carol"));
    assert!(screen.contains("Soon there 00:00 ◷"));
}

#[test]
fn any_size_can_be_drawn() {
    for (width, height) in [(1, 1), (2, 3), (5, 4), (30, 5), (300, 100)] {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        let mut app = app();
        terminal.draw(|frame| _ = draw(frame, &app, &TimeZone::UTC)).unwrap();
        app.help = true;
        app.notice = Some("x".repeat(400));
        terminal.draw(|frame| _ = draw(frame, &app, &TimeZone::UTC)).unwrap();
    }
}

#[test]
fn the_cursor_stays_in_sight_in_a_long_line() {
    let mut app = app();
    app.update(Happening::Pasted("0123456789".repeat(10)));
    let screen = screen(&app, 40);
    assert!(screen[usize::from(HEIGHT) - 2].ends_with("0123456789"), "{screen:?}");
}

#[test]
fn text_is_broken_between_words_and_only_if_need_be_within() {
    assert_eq!(wrap("one two three", 8), ["one two", "three"]);
    assert_eq!(wrap("abcdefghij", 4), ["abcd", "efgh", "ij"]);
    assert_eq!(wrap("a\n\nb", 4), ["a", "", "b"]);
    assert_eq!(wrap("你好吗", 4), ["你好", "吗"]);
    assert_eq!(wrap("", 4), [""]);
}
