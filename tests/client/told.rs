//! What the application is told when things end at an awkward moment, and what the next process can rely on.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake};
use std::time::Duration;

use bimip::client::limits::{CLOSE_WITHIN, COMMANDS_PER_TURN};
use bimip::client::{
    Backlog, CloseReason, Content, Device, Draft, Event, Events, FileOutbox, NotSent, Outbox, RequestError, Revoke,
    SendError, State, Ticket, TokenError, TokenSource,
};
use bimip::wire::{CloseCode, Eid, Lane, LocalId, Sequence};

use tokio::sync::{mpsc, watch};

use super::peer::{Peer, eid, ping};
use super::{Kept, device, message, options, picture, soon, state};

#[tokio::test]
async fn a_message_that_was_taken_before_a_panic_is_not_called_untaken() {
    let peer = Peer::start();
    peer.state().change(|seen| seen.mute = true);
    let fetched = AtomicUsize::new(0);
    let source = move || {
        assert_eq!(fetched.fetch_add(1, Ordering::Relaxed), 0, "the application's own mistake");
        async { Ok("good".to_owned()) }
    };
    let outbox = Kept::default();
    let builder = options(&peer).token(source).outbox(Box::new(outbox.clone()));
    let (device, _events) = builder.connect().unwrap();
    soon(device.connected()).await.unwrap();
    let ticket = device.submit(device.draft(&eid("bob@x"), Content::Text("once".into()))).unwrap();
    soon(peer.until(|seen| seen.texts == 1)).await;
    peer.close_all(CloseCode::Draining);
    let answer = soon(ticket).await;
    assert_eq!((outbox.0.lock().unwrap().drafts.len(), peer.state().seen().accepted.len()), (1, 1));
    assert_eq!(answer, Err(SendError::Unanswered(CloseReason::Panicked)));
}

/// An outbox that notes, when it is let go, what the device says of itself then.
struct Noting {
    state: watch::Receiver<Option<watch::Receiver<State>>>,
    at_the_end: Arc<Mutex<Option<State>>>,
}

impl Outbox for Noting {
    fn load(&mut self, _: &Eid) -> io::Result<Backlog> {
        Ok(Backlog::default())
    }

    fn insert(&mut self, _: &Draft) -> io::Result<()> {
        Ok(())
    }

    fn remove(&mut self, _: &LocalId) -> io::Result<()> {
        Ok(())
    }

    fn advance(&mut self, _: Sequence) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Noting {
    fn drop(&mut self) {
        *self.at_the_end.lock().unwrap() = self.state.borrow().as_ref().map(|state| state.borrow().clone());
    }
}

#[tokio::test]
async fn a_panic_is_told_when_the_outbox_has_been_let_go() {
    let peer = Peer::start();
    let fetched = AtomicUsize::new(0);
    let source = move || {
        assert_eq!(fetched.fetch_add(1, Ordering::Relaxed), 0, "the application's own mistake");
        async { Ok("good".to_owned()) }
    };
    let (sender, state_of) = watch::channel(None);
    let at_the_end = Arc::default();
    let outbox = Noting { state: state_of, at_the_end: Arc::clone(&at_the_end) };
    let (device, _events) = options(&peer).token(source).outbox(Box::new(outbox)).connect().unwrap();
    sender.send_replace(Some(device.state()));
    soon(device.connected()).await.unwrap();
    peer.close_all(CloseCode::Draining);
    state(&device, |state| *state == State::Closed(CloseReason::Panicked)).await;
    let at_the_end = at_the_end.lock().unwrap().clone();
    assert!(matches!(at_the_end, Some(State::Connecting | State::Waiting { .. })), "{at_the_end:?}");
}

#[test]
fn the_end_of_the_devices_runtime_is_told() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let peer = Peer::start();
    peer.state().change(|seen| seen.mute = true);
    let folder = tempfile::tempdir().unwrap();
    let file = || FileOutbox::open(folder.path().join("outbox"));
    let (own, other) = (runtime(), runtime());
    let (device, mut events, ticket) = own.block_on(async {
        let (device, events) = options(&peer).outbox(Box::new(file().unwrap())).connect().unwrap();
        soon(device.connected()).await.unwrap();
        let ticket = device.submit(device.draft(&eid("bob@x"), Content::Text("once".into()))).unwrap();
        soon(peer.until(|seen| seen.texts == 1)).await;
        (device, events, ticket)
    });
    own.shutdown_timeout(Duration::from_secs(5));
    other.block_on(async {
        let answer = soon(ticket).await;
        let free = file();
        assert!(free.is_ok(), "{}", free.unwrap_err());
        soon(async { while events.next().await.is_some() {} }).await;
        assert!(matches!(answer, Err(SendError::Unanswered(_))), "{answer:?}");
        assert_eq!(soon(device.connected()).await, Err(CloseReason::Local));
        assert_eq!(*device.state().borrow(), State::Closed(CloseReason::Local));
    });
}

/// Sends a draft at the moment at which it is woken, in the task that wakes it.
struct Sender {
    device: Device,
    draft: Draft,
    tickets: mpsc::UnboundedSender<Ticket>,
}

impl Wake for Sender {
    fn wake(self: Arc<Self>) {
        let _ = self.tickets.send(self.device.submit(self.draft.clone()).unwrap());
    }
}

#[tokio::test]
async fn who_sends_again_at_the_answer_finds_the_outbox_without_the_message_before() {
    let peer = Peer::start();
    let outbox = Kept::default();
    let (device, _events) = options(&peer).outbox(Box::new(outbox.clone())).connect().unwrap();
    let draft = device.draft(&eid("bob@x"), picture());
    let mut first = device.submit(draft.clone()).unwrap();
    // The answer wakes the caller in the middle of a turn of the device's task.
    let (tickets, mut sent) = mpsc::unbounded_channel();
    let sender = Arc::new(Sender { device, draft: draft.clone(), tickets }).into();
    assert!(Pin::new(&mut first).poll(&mut Context::from_waker(&sender)).is_pending());
    let second = soon(sent.recv()).await.unwrap();
    assert!(matches!(soon(second).await, Err(SendError::Refused(_))), "it is the server that refuses");
    assert!(matches!(soon(first).await, Err(SendError::Refused(_))));
    assert_eq!(peer.state().seen().media, 2);
}

async fn drop_at_the_answer(content: Content) {
    let peer = Peer::start();
    let outbox = Kept::default();
    let (device, mut events) = options(&peer).outbox(Box::new(outbox.clone())).connect().unwrap();
    soon(device.connected()).await.unwrap();
    let draft = device.draft(&eid("bob@x"), content);
    let id = draft.local_id.clone();
    let mut sending = Box::pin(device.send(draft));
    std::future::poll_fn(|cx| {
        assert!(sending.as_mut().poll(cx).is_pending());
        std::task::Poll::Ready(())
    })
    .await;
    let kept = |wanted: usize| {
        let outbox = outbox.clone();
        async move {
            while outbox.0.lock().unwrap().drafts.len() != wanted {
                tokio::task::yield_now().await;
            }
        }
    };
    soon(kept(1)).await;
    soon(kept(0)).await;
    // The user leaves the screen at the moment at which the answer comes.
    drop(sending);
    loop {
        match soon(events.next()).await.unwrap() {
            Event::Accepted(accepted) if accepted.local_id == id => break,
            Event::Refused(refused) if refused.local_id.as_ref() == Some(&id) => break,
            _ => {}
        }
    }
}

#[tokio::test]
async fn the_acceptance_of_a_dropped_call_is_an_event() {
    drop_at_the_answer(Content::Text("text".into())).await;
}

#[tokio::test]
async fn the_refusal_of_a_dropped_call_is_an_event() {
    drop_at_the_answer(picture()).await;
}

#[tokio::test]
async fn a_sync_before_the_first_session_does_not_rewind_the_next_process() {
    let peer = Peer::start();
    for text in ["one", "two", "three"] {
        peer.push(text);
    }
    // An earlier life of the application, without an outbox file, has stored all three and told the server.
    peer.state().change(|seen| seen.synced = 3);
    let outbox = Kept::default();
    let start = || options(&peer).auto_sync(false).outbox(Box::new(outbox.clone())).connect().unwrap();
    let (device, _events) = start();
    soon(device.sync(Sequence::from(3))).await.unwrap();
    soon(device.connected()).await.unwrap();
    soon(device.close()).await;
    let (device, mut events) = start();
    soon(device.connected()).await.unwrap();
    peer.push("four");
    assert_eq!(message(&mut events).await.text(), Some("four"));
}

#[tokio::test]
async fn a_device_without_chat_leaves_the_messages_to_one_that_wants_them() {
    let peer = Peer::start();
    for text in ["one", "two", "three", "four", "five"] {
        peer.push(text);
    }
    // Another process has taken three.
    peer.state().change(|seen| seen.synced = 3);
    let outbox = Kept::default();
    outbox.0.lock().unwrap().cursor = Some(Sequence::from(3));
    for auto_sync in [true, false] {
        let builder = options(&peer).lanes(&[Lane::Control]).auto_sync(auto_sync);
        let (device, _events) = builder.outbox(Box::new(outbox.clone())).connect().unwrap();
        soon(device.connected()).await.unwrap();
        soon(device.ping()).await.unwrap();
        peer.close_all(CloseCode::Draining);
        state(&device, |state| matches!(state, State::Waiting { .. })).await;
        soon(device.connected()).await.unwrap();
        soon(device.ping()).await.unwrap();
        let closes = peer.state().seen().closes.len();
        soon(device.close()).await;
        // By then the peer has accepted every lane that was opened.
        soon(peer.until(|seen| seen.closes.len() > closes)).await;
    }
    assert_eq!(peer.state().seen().lanes, [Lane::Control; 4]);
    assert_eq!((peer.state().seen().synced, outbox.0.lock().unwrap().cursor), (3, Some(Sequence::from(3))));
    let (_device, mut events) = options(&peer).outbox(Box::new(outbox)).connect().unwrap();
    assert_eq!(message(&mut events).await.text(), Some("four"));
}

#[tokio::test]
async fn an_outbox_file_is_free_when_the_events_have_ended() {
    let peer = Peer::start();
    let folder = tempfile::tempdir().unwrap();
    let file = || FileOutbox::open(folder.path().join("outbox"));
    let (device, mut events) = options(&peer).outbox(Box::new(file().unwrap())).connect().unwrap();
    soon(device.connected()).await.unwrap();
    drop(device);
    while soon(events.next()).await.is_some() {}
    let again = file();
    assert!(again.is_ok(), "{}", again.unwrap_err());
}

struct Cached {
    made: AtomicUsize,
    refused: Arc<Mutex<Vec<String>>>,
}

impl TokenSource for Cached {
    fn token(&self) -> Pin<Box<dyn Future<Output = Result<String, TokenError>> + Send + '_>> {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move { Ok(format!("token {number}")) })
    }

    fn refused(&self, token: &str) {
        self.refused.lock().unwrap().push(token.to_owned());
    }
}

#[tokio::test]
async fn the_source_hears_of_every_refused_token() {
    let peer = Peer::start();
    let refused = Arc::<Mutex<Vec<String>>>::default();
    let source = Cached { made: AtomicUsize::new(0), refused: refused.clone() };
    let (device, _events) = options(&peer).token(source).connect().unwrap();
    soon(device.connected()).await.unwrap_err();
    assert_eq!(*refused.lock().unwrap(), ["token 0", "token 1", "token 2"]);
}

#[tokio::test]
async fn a_stopped_device_that_heard_of_a_new_network_starts_from_a_new_socket() {
    let peer = Peer::start();
    let (device, _events) = device(&peer);
    soon(device.connected()).await.unwrap();
    soon(device.rebind("127.0.0.2:0".parse().unwrap())).await.unwrap();
    soon(device.send_text(&eid("bob@x"), "from elsewhere")).await.unwrap();
    peer.close_all(CloseCode::Replaced);
    soon(device.state().wait_for(|state| matches!(state, State::Closed(_)))).await.unwrap();
    soon(device.network_changed()).await.unwrap();
    soon(device.reconnect()).await.unwrap();
    soon(device.connected()).await.unwrap();
    let from = peer.state().seen().connections[0].remote_address().ip();
    assert_eq!(from.to_string(), "127.0.0.1");
}

#[tokio::test]
async fn close_waits_for_a_connection_if_messages_wait_for_one() {
    let peer = Peer::start();
    // The token comes only after `close` was called: the attempt to connect is under way until then.
    let (gate, open) = watch::channel(false);
    let source = move || {
        let mut open = open.clone();
        async move {
            open.wait_for(|open| *open).await?;
            Ok("good".to_owned())
        }
    };
    let (device, _events) = options(&peer).token(source).connect().unwrap();
    let ticket = device.submit(device.draft(&eid("bob@x"), Content::Text("last".into()))).unwrap();
    let then = async {
        // The device takes this call behind `close`.
        assert_eq!(device.path_rtt().await, None);
        gate.send_replace(true);
    };
    soon(async { tokio::join!(device.close(), then) }).await;
    soon(ticket).await.unwrap();

    // There is no token at first: the device waits for its next attempt.
    let asked = AtomicUsize::new(0);
    let source = move || {
        let first = asked.fetch_add(1, Ordering::Relaxed) == 0;
        async move { if first { Err("not yet".into()) } else { Ok("good".to_owned()) } }
    };
    let (device, _events) = options(&peer).token(source).connect().unwrap();
    state(&device, |state| matches!(state, State::Waiting { .. })).await;
    let ticket = device.submit(device.draft(&eid("bob@x"), Content::Text("last".into()))).unwrap();
    soon(device.close()).await;
    soon(ticket).await.unwrap();
    assert_eq!(peer.state().seen().accepted.len(), 2);
}

#[tokio::test]
async fn a_device_that_signed_out_makes_no_other_connection_for_what_waits() {
    let peer = Peer::start();
    peer.state().change(|seen| seen.mute = true);
    let (device, _events) = device(&peer);
    soon(device.connected()).await.unwrap();
    let ticket = device.submit(device.draft(&eid("bob@x"), Content::Text("unanswered".into()))).unwrap();
    let lost = async {
        peer.until(|seen| seen.logouts == 1 && seen.texts == 1).await;
        // The device has the answer once it has answered what came behind it.
        ping(&peer).await;
        peer.close_all(CloseCode::Internal);
    };
    let (signed_out, ()) = soon(async { tokio::join!(device.sign_out(), lost) }).await;
    signed_out.unwrap();
    assert!(matches!(soon(ticket).await, Err(SendError::Unanswered(_))));
    assert_eq!(peer.state().seen().opens.len(), 1);
}

#[tokio::test]
async fn a_revocation_whose_answer_was_lost_is_not_made_again() {
    let peer = Peer::start();
    let (device, _events) = device(&peer);
    soon(device.connected()).await.unwrap();
    let lost = async {
        peer.until(|seen| seen.revocations == 1).await;
        peer.close_all(CloseCode::Internal);
    };
    let (revoked, ()) = soon(async { tokio::join!(device.revoke(Revoke::All), lost) }).await;
    assert!(matches!(revoked, Err(RequestError::NotConnected)), "{revoked:?}");
    // It would revoke tokens that were issued meanwhile, and go before anything else on control.
    soon(peer.until(|seen| seen.opens.len() == 2)).await;
    soon(device.connected()).await.unwrap();
    soon(device.ping()).await.unwrap();
    let seen = peer.state().seen();
    assert_eq!((seen.opens.len(), seen.revocations), (2, 1));
}

#[tokio::test]
async fn close_waits_for_no_connection_if_nothing_waits_for_one() {
    let peer = Peer::start();
    let (device, _events) = options(&peer).token(std::future::pending).connect().unwrap();
    tokio::time::timeout(CLOSE_WITHIN / 2, device.close()).await.expect("at once");
}

#[tokio::test]
async fn messages_that_a_restored_server_accepted_while_the_device_was_away_are_not_skipped() {
    come_back_to_a_restored_server(Peer::start()).await;
}

#[tokio::test]
async fn nor_if_the_device_comes_back_with_early_data() {
    come_back_to_a_restored_server(Peer::with_early_data()).await;
}

async fn come_back_to_a_restored_server(peer: Peer) {
    let outbox = Kept::default();
    let start = || options(&peer).outbox(Box::new(outbox.clone())).connect().unwrap();
    let (device, mut events) = start();
    for number in 1..=8 {
        peer.push(&format!("{number}"));
        message(&mut events).await;
    }
    soon(peer.until(|seen| seen.synced == 8)).await;
    let opens = peer.state().seen().opens.len();
    peer.restore(4, 3);
    peer.push("five");
    peer.push("six");
    peer.close_all(CloseCode::Draining);
    // What was not known to be safe at the time of the backup comes again, under the same name.
    let mut gaps = Vec::new();
    for text in ["4", "five", "six"] {
        loop {
            match soon(events.next()).await.unwrap() {
                Event::Connected(session) => gaps.push(session.gap),
                Event::Message(message) => break assert_eq!(message.text(), Some(text)),
                _ => {}
            }
        }
    }
    assert_eq!(gaps, [true]);
    let asked: Vec<_> = peer.state().seen().opens[opens..].iter().map(|open| open.resume_from).collect();
    assert_eq!(asked, [Some(8), None]);
    soon(peer.until(|seen| seen.synced == 6)).await;
    soon(device.close()).await;

    // The outbox kept a place in the present log.
    while soon(events.next()).await.is_some() {}
    assert_eq!(outbox.0.lock().unwrap().cursor, Some(Sequence::from(6)));
    let (_device, mut events) = start();
    peer.push("seven");
    assert_eq!(message(&mut events).await.text(), Some("seven"));
}

/// Drops this message's ticket before it is answered; returns what is told of it.
async fn not_sent(device: &Device, events: &mut Events, text: &str) -> SendError {
    let draft = device.draft(&eid("bob@x"), Content::Text(text.into()));
    let id = draft.local_id.clone();
    drop(device.submit(draft).unwrap());
    loop {
        match soon(events.next()).await.unwrap() {
            Event::NotSent(NotSent { local_id, error }) => {
                assert_eq!(local_id, id);
                return error;
            }
            _ => continue,
        }
    }
}

#[tokio::test]
async fn a_message_that_was_not_sent_and_that_nobody_waits_for_is_an_event() {
    let peer = Peer::start();
    let (device, mut events) = options(&peer).outbox(Box::new(Kept::default())).connect().unwrap();
    soon(device.connected()).await.unwrap();
    assert_eq!(not_sent(&device, &mut events, "poison").await, SendError::Outbox("disk full".into()));
    let invalid = not_sent(&device, &mut events, "").await;
    assert!(matches!(invalid, SendError::Invalid(_)), "{invalid:?}");
    peer.close_all(CloseCode::Replaced);
    let stopped = state(&device, |state| matches!(state, State::Closed(_))).await;
    let late = not_sent(&device, &mut events, "late").await;
    assert!(matches!(&late, SendError::Closed(reason) if stopped == State::Closed(reason.clone())), "{late:?}");

    // What the device has answered, and what it had not come to when it ended.
    let ticket = device.submit(device.draft(&eid("bob@x"), Content::Text("answered".into()))).unwrap();
    soon(device.network_changed()).await.unwrap();
    drop(ticket);
    assert!(matches!(soon(events.next()).await, Some(Event::NotSent(_))));
    let mut closing = Box::pin(device.close());
    assert!(std::future::poll_fn(|cx| Poll::Ready(closing.as_mut().poll(cx).is_pending())).await);
    for _ in 0..2 * COMMANDS_PER_TURN {
        drop(device.submit(device.draft(&eid("bob@x"), Content::Text("behind".into()))).unwrap());
    }
    soon(closing).await;
    for _ in 0..2 * COMMANDS_PER_TURN {
        let Some(Event::NotSent(behind)) = soon(events.next()).await else { panic!("one of them vanished") };
        assert!(matches!(behind.error, SendError::Closed(_)), "{behind:?}");
    }
    assert_eq!(soon(events.next()).await, None);
}

#[tokio::test]
async fn a_close_that_was_given_up_is_not_waited_for_once_the_last_handle_is_gone() {
    let peer = Peer::start();
    peer.state().change(|seen| seen.mute = true);
    let (device, mut events) = device(&peer);
    soon(device.connected()).await.unwrap();
    drop(device.submit(device.draft(&eid("bob@x"), Content::Text("unanswered".into()))).unwrap());
    soon(peer.until(|seen| seen.texts == 1)).await;
    let mut closing = Box::pin(device.close());
    assert!(std::future::poll_fn(|cx| Poll::Ready(closing.as_mut().poll(cx).is_pending())).await);
    // The device takes this call behind `close`.
    assert!(soon(device.path_rtt()).await.is_some());
    drop(closing);
    drop(device);
    let ended = async { while events.next().await.is_some() {} };
    tokio::time::timeout(CLOSE_WITHIN / 2, ended).await.expect("at once");
}

#[tokio::test]
async fn a_refused_token_is_not_tried_again_after_an_attempt_that_came_to_nothing() {
    let peer = Peer::start();
    let (asks, mut asked) = watch::channel(0);
    // The second call does not come back.
    let source = move || {
        let mut number = 0;
        asks.send_modify(|asks| {
            *asks += 1;
            number = *asks;
        });
        async move {
            if number == 2 {
                std::future::pending::<()>().await;
            }
            Ok("bad".to_owned())
        }
    };
    let (device, _events) = options(&peer).token(source).connect().unwrap();
    soon(asked.wait_for(|asked| *asked == 2)).await.unwrap();
    soon(device.network_changed()).await.unwrap();
    let reason = soon(device.connected()).await.unwrap_err();
    assert!(matches!(reason, CloseReason::Server { code: CloseCode::Unauthenticated, .. }), "{reason:?}");
    assert_eq!((*asked.borrow(), peer.state().seen().opens.len()), (3, 1));
}

#[tokio::test]
async fn a_goodbye_that_nobody_asked_for_is_no_reason_to_stay_away() {
    let peer = Peer::start();
    let (device, _events) = device(&peer);
    soon(device.connected()).await.unwrap();
    peer.close_all(CloseCode::Goodbye);
    soon(peer.until(|seen| seen.opens.len() == 2)).await;
    soon(device.connected()).await.unwrap();
}
