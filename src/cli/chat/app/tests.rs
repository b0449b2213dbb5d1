//! Tests of the chat's decisions, input by input.

use std::collections::VecDeque;
use std::time::Instant;

use super::*;
use crate::client::{AckTarget, Refusal, Refused, Session, Transport};
use crate::wire::{ChatId, MessageId, Sequence};

fn eid(name: &str) -> Eid {
    Eid::parse(&format!("{name}@x")).unwrap()
}

fn app() -> App {
    let mut app = App::new(eid("alice"), DeviceId::parse("cli-chat").unwrap());
    app.update(Happening::State(State::Connected(session())));
    app
}

fn session() -> Session {
    Session {
        session_id: "0123456789abcdef".to_owned(),
        server: "test".to_owned(),
        server_time: 0,
        log_head: Sequence::ZERO,
        resume_from: Sequence::ZERO,
        transport: Transport::Quic,
        early: false,
        gap: false,
        token_expires_at: 0,
        connected_in: Duration::from_millis(3),
    }
}

fn id(number: u64) -> MessageId {
    MessageId::new(number as i64, [1; 10])
}

/// A message in the chat with `peer`, received or own.
fn message(peer: &str, version: u64, own: bool, text: &str) -> Message {
    let (alice, peer) = (eid("alice"), eid(peer));
    let (from, to) = if own { (alice.clone(), peer.clone()) } else { (peer.clone(), alice.clone()) };
    Message {
        sequence: Sequence::from(version),
        author: if own { Author::Sender } else { Author::Receiver },
        message_id: id(version),
        local_id: None,
        chat_id: ChatId::between(&alice, &peer),
        version: Version::from(version),
        from,
        from_device: None,
        to,
        content: Content::Text(text.to_owned()),
        acknowledgment: if own { AckStatus::Sent } else { AckStatus::Unread },
        created_at: version as i64,
        server_received_at: version as i64,
        received: Instant::now(),
    }
}

fn came(app: &mut App, message: Message) -> Vec<Effect> {
    app.update(Happening::Event(Event::Message(message)))
}

fn key(app: &mut App, code: KeyCode) -> Vec<Effect> {
    app.update(Happening::Key(KeyEvent::new(code, KeyModifiers::NONE)))
}

fn enter(app: &mut App, line: &str) -> Vec<Effect> {
    app.update(Happening::Pasted(line.to_owned()));
    key(app, KeyCode::Enter)
}

fn composed(app: &mut App, to: &str, local_id: &str) -> LocalId {
    let local_id = LocalId::parse(local_id).unwrap();
    let content = Content::Text(local_id.to_string());
    app.update(Happening::Composed { to: eid(to), local_id: local_id.clone(), content, at: 50 });
    local_id
}

fn sent(app: &mut App, to: &str, local_id: &LocalId, version: u64) {
    let sent = Sent {
        local_id: local_id.clone(),
        message_id: id(version),
        chat_id: ChatId::between(&eid("alice"), &eid(to)),
        version: Version::from(version),
        sequence: Sequence::from(version),
        timestamp: 0,
        latency: Duration::ZERO,
    };
    app.update(Happening::Sent(eid(to), sent));
}

fn receipt(app: &mut App, by: &str, sender: &str, target: AckTarget, status: AckStatus) {
    let receipt =
        Acknowledged { sequence: Sequence::ZERO, by: eid(by), sender: eid(sender), target, status, timestamp: 0 };
    app.update(Happening::Event(Event::Acknowledged(receipt)));
}

fn up_to(peer: &str, version: u64) -> AckTarget {
    AckTarget::UpTo(ChatId::between(&eid("alice"), &eid(peer)), Version::from(version))
}

fn progress(app: &App) -> Vec<Progress> {
    app.opened().unwrap().shown().map(|entry| entry.progress).collect()
}

fn page(app: &mut App, peer: &str, versions: std::ops::RangeInclusive<u64>, complete: bool) -> Vec<Effect> {
    let messages = versions.map(|version| message(peer, version, false, "old")).collect();
    app.update(Happening::History { peer: eid(peer), messages, complete })
}

#[test]
fn own_messages_get_their_ticks_and_only_forward() {
    let mut app = app();
    app.open(&eid("bob"));
    let (one, two) = (composed(&mut app, "bob", "1"), composed(&mut app, "bob", "2"));
    assert_eq!(progress(&app), [Progress::Waiting, Progress::Waiting]);
    sent(&mut app, "bob", &one, 1);
    assert_eq!(progress(&app), [Progress::Sent, Progress::Waiting]);
    receipt(&mut app, "bob", "alice", up_to("bob", 1), AckStatus::Read);
    receipt(&mut app, "bob", "alice", AckTarget::Message(id(1)), AckStatus::Delivered);
    assert_eq!(progress(&app), [Progress::Read, Progress::Waiting]);
    // A receipt that overtakes the answer, because it comes through another queue.
    receipt(&mut app, "bob", "alice", AckTarget::Message(id(2)), AckStatus::Delivered);
    sent(&mut app, "bob", &two, 2);
    assert_eq!(progress(&app), [Progress::Read, Progress::Delivered]);
}

#[test]
fn a_refused_message_stays_and_says_so() {
    let mut app = app();
    app.open(&eid("bob"));
    let local_id = composed(&mut app, "bob", "1");
    app.update(Happening::NotSent(eid("bob"), Some(local_id), SendError::OutboxFull));
    assert_eq!(progress(&app), [Progress::Refused]);
    assert!(app.notice.as_ref().unwrap().contains("the outbox is full"));
    key(&mut app, KeyCode::Char('x'));
    assert_eq!(app.notice, None);
}

#[test]
fn a_message_that_is_sent_after_all_is_not_called_refused() {
    let mut app = app();
    app.open(&eid("bob"));
    let texts = ["1", "2", "3"].map(|name| composed(&mut app, "bob", name));
    let stopped = CloseReason::Server { code: CloseCode::Unauthenticated, reason: "token expired".to_owned() };
    for (text, error) in
        texts.iter().zip([SendError::Unanswered(stopped.clone()), SendError::Unread, SendError::Unanswered(stopped)])
    {
        app.update(Happening::NotSent(eid("bob"), Some(text.clone()), error));
        assert!(app.notice.as_ref().unwrap().starts_with("it is not known whether a message to bob@x was sent: "));
    }
    assert_eq!(progress(&app), [Progress::Waiting; 3]);
    // The device has come back, and the outbox has sent them.
    for (text, version) in texts[..2].iter().zip(1..) {
        let accepted = Accepted {
            sequence: Sequence::from(version),
            local_id: text.clone(),
            message_id: id(version),
            chat_id: ChatId::between(&eid("alice"), &eid("bob")),
            version: Version::from(version),
            timestamp: 0,
        };
        app.update(Happening::Event(Event::Accepted(accepted)));
    }
    let refusal = Refusal { code: 403, message: "blocked".to_owned(), route: String::new(), details: String::new() };
    let refused = Refused { local_id: Some(texts[2].clone()), refusal };
    app.update(Happening::Event(Event::Refused(refused)));
    assert_eq!(progress(&app), [Progress::Sent, Progress::Sent, Progress::Refused]);
    receipt(&mut app, "bob", "alice", up_to("bob", 2), AckStatus::Delivered);
    assert_eq!(progress(&app), [Progress::Delivered, Progress::Delivered, Progress::Refused]);
}

#[test]
fn what_is_in_sight_is_read_and_the_rest_is_counted() {
    let mut app = app();
    app.open(&eid("bob"));
    let effects = came(&mut app, message("bob", 1, false, "hi"));
    let version = Version::from(1);
    assert_eq!(
        effects,
        [
            Effect::Acknowledge(eid("bob"), AckStatus::Delivered, version),
            Effect::Acknowledge(eid("bob"), AckStatus::Read, version)
        ]
    );
    let effects = came(&mut app, message("carol", 1, false, "hi"));
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Acknowledge(_, AckStatus::Read, _))));
    assert_eq!(app.unread(), 1);
    // When scrolled up, the newest message is not visible.
    app.update(Happening::Drawn { lines: 100, height: 10 });
    key(&mut app, KeyCode::PageUp);
    came(&mut app, message("bob", 2, false, "there?"));
    assert_eq!(app.unread(), 2);
    let effects = key(&mut app, KeyCode::Esc);
    assert_eq!(effects, [Effect::Acknowledge(eid("bob"), AckStatus::Read, Version::from(2))]);
    // Read on another device of the same user.
    receipt(&mut app, "alice", "carol", up_to("carol", 1), AckStatus::Read);
    assert_eq!(app.unread(), 0);
}

#[test]
fn history_is_asked_for_until_the_screen_is_full_or_nothing_is_left() {
    let mut app = app();
    assert_eq!(app.open(&eid("bob")), [Effect::History(eid("bob"), None)]);
    // Only one request at a time.
    assert!(app.update(Happening::Drawn { lines: 1, height: 10 }).is_empty());
    page(&mut app, "bob", 21..=40, false);
    assert!(app.update(Happening::Drawn { lines: 20, height: 10 }).is_empty());
    let effects = key(&mut app, KeyCode::PageUp);
    assert_eq!(effects, [Effect::History(eid("bob"), Some(Version::from(21)))]);
    page(&mut app, "bob", 1..=20, true);
    assert_eq!(app.opened().unwrap().shown().count(), 40);
    key(&mut app, KeyCode::PageUp);
    assert!(!app.opened().unwrap().has_older());
}

#[test]
fn an_older_page_that_was_refused_is_requested_anew_after_a_reconnect() {
    let mut app = app();
    app.open(&eid("bob"));
    page(&mut app, "bob", 21..=40, false);
    app.update(Happening::Drawn { lines: 20, height: 10 });
    let older = [Effect::History(eid("bob"), Some(Version::from(21)))];
    assert_eq!(key(&mut app, KeyCode::PageUp), older);
    app.update(Happening::NoHistory { peer: eid("bob"), reason: "busy".to_owned() });
    assert!(app.notice.is_some() && key(&mut app, KeyCode::PageUp).is_empty(), "it would be refused again");
    app.update(Happening::Event(Event::Connected(session())));
    assert_eq!(app.update(Happening::Drawn { lines: 5, height: 10 }), older);
}

#[test]
fn a_gap_is_not_shown_and_is_filled_from_history() {
    let mut app = app();
    app.open(&eid("bob"));
    page(&mut app, "bob", 1..=3, true);
    came(&mut app, message("bob", 6, false, "six"));
    assert_eq!(app.opened().unwrap().shown().count(), 1);
    let effects = app.update(Happening::Drawn { lines: 1, height: 10 });
    assert_eq!(effects, [Effect::History(eid("bob"), Some(Version::from(6)))]);
    page(&mut app, "bob", 2..=5, false);
    assert_eq!(app.opened().unwrap().shown().count(), 6);
    // If the server cannot fill the gap any more, the conversation begins after it.
    came(&mut app, message("bob", 9, false, "nine"));
    page(&mut app, "bob", 9..=9, false);
    assert_eq!(app.opened().unwrap().shown().count(), 1);
    assert!(app.update(Happening::Drawn { lines: 1, height: 10 }).is_empty());
}

#[test]
fn lines_that_are_entered_become_effects() {
    let mut app = app();
    enter(&mut app, "hello?");
    assert_eq!(app.input.text(), "hello?");
    assert!(app.notice.is_some());
    app.input.take();
    enter(&mut app, "/to bob@x");
    assert_eq!(enter(&mut app, "hello"), [Effect::Send(eid("bob"), Content::Text("hello".to_owned()))]);
    assert_eq!(enter(&mut app, "/quit"), [Effect::Quit]);
    enter(&mut app, "/to alice@x");
    assert_eq!(app.notice.as_deref(), Some("that is you"));
    let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(app.update(Happening::Key(control_c)), [Effect::Quit]);
}

#[test]
fn conversations_are_in_the_order_of_their_activity_and_tab_goes_round() {
    let mut app = app();
    came(&mut app, message("bob", 1, false, "a"));
    came(&mut app, message("carol", 2, false, "b"));
    let peers = |app: &App| app.conversations.iter().map(|c| c.peer.to_string()).collect::<Vec<_>>();
    assert_eq!(peers(&app), ["carol@x", "bob@x"]);
    for expected in ["carol@x", "bob@x", "carol@x"] {
        key(&mut app, KeyCode::Tab);
        assert_eq!(app.opened().unwrap().peer.as_str(), expected);
    }
    key(&mut app, KeyCode::BackTab);
    assert_eq!(app.opened().unwrap().peer.as_str(), "bob@x");
    composed(&mut app, "bob", "1");
    assert_eq!(peers(&app), ["bob@x", "carol@x"]);
}

#[test]
fn contacts_and_presence_make_conversations() {
    let mut app = app();
    let identity = |name: &str| Some(eid(name).identity());
    let entry = Subscriber { subscriber: identity("dora"), nickname: "Dora".to_owned(), ..Subscriber::default() };
    let blocked = Subscriber { subscriber: identity("eve"), blocked: true, ..Subscriber::default() };
    app.update(Happening::Contacts(vec![entry, blocked]));
    let away = AwarenessNotification { from: identity("bob"), status: 3, ..AwarenessNotification::default() };
    app.update(Happening::Event(Event::Presence(away)));
    let names: Vec<_> = app.conversations.iter().map(Conversation::name).collect();
    assert_eq!(names, ["Dora", "bob@x"]);
    assert_eq!(app.presence_of(&eid("bob")), Some(AwarenessStatus::Away));
}

#[test]
fn a_connection_that_comes_back_fetches_what_was_not_fetched() {
    let mut app = App::new(eid("alice"), DeviceId::parse("cli-chat").unwrap());
    assert!(app.open(&eid("bob")).is_empty());
    app.update(Happening::State(State::Waiting {
        retry_in: Duration::from_millis(1500),
        reason: CloseReason::Network("nobody there".to_owned()),
    }));
    assert_eq!(app.connection, Connection::Waiting { seconds: 2, reason: "nobody there".to_owned() });
    assert_eq!(app.update(Happening::State(State::Connected(session()))), [Effect::History(eid("bob"), None)]);
    let connected = |app: &mut App| app.update(Happening::Event(Event::Connected(session())));
    // This request is lost with the connection.
    app.update(Happening::NoHistory { peer: eid("bob"), reason: "not connected".to_owned() });
    assert_eq!(connected(&mut app), [Effect::Contacts, Effect::History(eid("bob"), None)]);
    page(&mut app, "bob", 1..=1, true);
    assert_eq!(connected(&mut app), [Effect::Contacts]);
}

/// Answers each request for history as the server does, until none is left; returns how many there were.
fn answer_histories(app: &mut App, effects: Vec<Effect>) -> usize {
    let (mut effects, mut requests) = (VecDeque::from(effects), 0);
    while let Some(effect) = effects.pop_front() {
        let Effect::History(peer, _) = effect else { continue };
        requests += 1;
        assert!(requests < 10 * CHAT_CONVERSATIONS_MAX, "history is requested for ever");
        effects.extend(app.update(Happening::History { peer, messages: Vec::new(), complete: true }));
    }
    requests
}

#[test]
fn more_contacts_than_are_kept_are_listed_and_their_history_is_requested_when_they_are_opened() {
    let mut app = app();
    let contact = |number| {
        let subscriber = Some(eid(&format!("user{number}")).identity());
        Subscriber { subscriber, ..Subscriber::default() }
    };
    let effects = app.update(Happening::Contacts((0..CHAT_CONVERSATIONS_MAX + 10).map(contact).collect()));
    assert_eq!(answer_histories(&mut app, effects), 0);
    for number in 0..CHAT_CONVERSATIONS_MAX + 10 {
        let from = Some(eid(&format!("user{number}")).identity());
        let online = AwarenessNotification { from, status: 2, ..AwarenessNotification::default() };
        let effects = app.update(Happening::Event(Event::Presence(online)));
        assert_eq!(answer_histories(&mut app, effects), 0);
    }
    assert_eq!((app.conversations.len(), app.presence.len()), (CHAT_CONVERSATIONS_MAX, CHAT_CONVERSATIONS_MAX));
    // One of those that are kept, by key; and one that is not, which evicts another.
    let effects = key(&mut app, KeyCode::Tab);
    assert_eq!(answer_histories(&mut app, effects), 1);
    let effects = enter(&mut app, &format!("/to user{}@x", CHAT_CONVERSATIONS_MAX + 9));
    assert_eq!(answer_histories(&mut app, effects), 1);
    assert_eq!((app.conversations.len(), app.presence.len()), (CHAT_CONVERSATIONS_MAX, CHAT_CONVERSATIONS_MAX - 1));
}

#[test]
fn answers_for_a_conversation_that_was_evicted_make_none() {
    let mut app = app();
    let mut requested = Vec::new();
    for number in 0..CHAT_CONVERSATIONS_MAX + 10 {
        requested.extend(came(&mut app, message(&format!("user{number}"), number as u64 + 1, false, "hi")));
        let under_way = requested.iter().filter(|effect| matches!(effect, Effect::History(..))).count();
        assert!(under_way <= CHAT_HISTORIES_MAX);
    }
    let local_id = LocalId::parse("1").unwrap();
    sent(&mut app, "user0", &local_id, 2);
    app.update(Happening::NotSent(eid("user0"), Some(local_id), SendError::OutboxFull));
    assert_eq!(requested.remove(1), Effect::History(eid("user0"), None));
    requested.extend(app.update(Happening::NoHistory { peer: eid("user0"), reason: "busy".to_owned() }));
    // The first one is the least active, and was evicted after its history had been requested.
    assert!(app.find(&eid("user0")).is_none());
    let requests = answer_histories(&mut app, requested);
    assert!(requests >= CHAT_CONVERSATIONS_MAX, "{requests}");
    assert_eq!(app.conversations.len(), CHAT_CONVERSATIONS_MAX);
    assert!(app.conversations.iter().all(|conversation| conversation.fetched && conversation.active > 10));
}

#[test]
fn memory_is_bounded() {
    let mut app = app();
    for number in 0..CHAT_CONVERSATIONS_MAX + 10 {
        came(&mut app, message(&format!("user{number}"), 1, false, "hi"));
    }
    assert_eq!(app.conversations.len(), CHAT_CONVERSATIONS_MAX);
    app.open(&eid("bob"));
    let most = crate::cli::limits::CHAT_MESSAGES_MAX as u64;
    for version in 1..=most + 10 {
        came(&mut app, message("bob", version, false, "hi"));
    }
    assert_eq!(app.opened().unwrap().shown().count() as u64, most);
    assert!(app.opened().unwrap().has_older());
}
