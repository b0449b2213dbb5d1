//! The client library and the server over an emulated mobile network: whatever happens to the path in the middle of a
//! conversation, nothing is lost, nothing comes twice, and each side reads in the order in which the other wrote.
#![cfg(all(target_os = "linux", feature = "link", feature = "client", feature = "server"))]
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::VecDeque;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bimip::client::{Builder, Content, Device, Event, Events, Session, State, Ticket, Transport, Transports};
use bimip::link::{Control, Loss, Network, Path, Plan, Profile, Protocol, Way};
use bimip::wire::{DeviceId, Eid};
use common::{TestServer, link_is_possible};
use tokio::runtime::Handle;
use tokio::sync::watch;

/// Longest wait for anything, a conversation with its trouble included. A failure, not a pace.
const PATIENCE: Duration = Duration::from_secs(90);
/// Messages each way in one conversation.
const MESSAGES: usize = 120;
/// Those on their way at once, so that a conversation lasts through its trouble.
const WINDOW: usize = 8;
/// The messages after which something happens.
const AFTER: usize = 30;

/// Without a network between two of them.
const GAP: Duration = Duration::from_millis(200);
/// Packets that a phone sends into a tunnel until it ends: some seconds' worth, as each waits longer than the last.
const TRIES: u64 = 9;
/// More of them: it knocks by then, and has doubts about the path.
const TRIES_IN_DOUBT: u64 = 18;
const ONLY_QUIC: Transports = Transports::Only(Transport::Quic);
/// Silence after which these phones give a path up.
const IMPATIENT: Duration = Duration::from_secs(2);

const ALICE: &str = "alice@localhost";
const BOB: &str = "bob@localhost";
const OPENS: &str = "bimip_session_opens_total{transport=\"quic\",result=\"accepted\"}";

fn eid(text: &str) -> Eid {
    Eid::parse(text).unwrap()
}

async fn soon<T>(what: &str, event: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, event).await.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for {what}"))
}

/// A profile that also loses at random, each way.
fn losing(mut profile: Profile, share: f64) -> Profile {
    (profile.up.loss, profile.down.loss) = (Loss::Random(share), Loss::Random(share));
    profile
}

/// One of the two who talk.
struct Side {
    device: Device,
    events: Events,
}

/// Alice with her phone, Bob beside the server, and the network between them.
struct World {
    alice: Side,
    bob: Side,
    /// Alice's session at the beginning.
    first: Session,
    /// Messages each way so far.
    said: usize,
    server: Arc<TestServer>,
    /// The server's side of the network.
    beside: Handle,
    control: Control,
}

/// Plays a scene on the phone. Nothing, loudly, where there can be no network.
fn play<F: Future<Output = World> + Send>(
    plan: Plan,
    options: impl FnOnce(Builder) -> Builder + Send,
    scene: impl FnOnce(World) -> F + Send,
) {
    if !link_is_possible() {
        return;
    }
    let net = Network::start(plan).unwrap();
    let (phone, beside) = (net.phone().runtime(1).unwrap(), net.server().runtime(1).unwrap());
    phone.block_on(async {
        let world = World::new(&net, beside.handle().clone(), options).await;
        let World { alice, bob, server, beside, .. } = scene(world).await;
        soon("both to leave", async { tokio::join!(alice.device.close(), bob.device.close()) }).await;
        let server = Arc::into_inner(server).expect("nobody asks the server any more");
        beside.spawn(server.shutdown()).await.unwrap();
    });
    assert_eq!(net.missed().unwrap(), 0, "the link carried all that it was given");
}

impl World {
    async fn new(net: &Network, beside: Handle, options: impl FnOnce(Builder) -> Builder) -> World {
        let address = net.server_address();
        let server = beside.spawn(TestServer::with(move |config| config.listen = (address, 0).into())).await.unwrap();
        let builder = |user: &str| {
            Device::builder()
                .server(server.quic_address().to_string())
                .server_name("localhost")
                .roots_pem(server.files().ca)
                .identity(eid(user), DeviceId::parse("phone").unwrap())
                .token(server.token(user, None))
        };
        let (device, events) = options(builder(ALICE)).connect().unwrap();
        let alice = Side { device, events };
        let bobs = builder(BOB);
        let (device, events) = beside.spawn(async move { bobs.connect() }).await.unwrap().unwrap();
        let bob = Side { device, events };
        let first = soon("Alice's session", alice.device.connected()).await.unwrap();
        soon("Bob's session", bob.device.connected()).await.unwrap();
        World { alice, bob, first, said: 0, server: Arc::new(server), beside, control: net.control().clone() }
    }

    /// Both talk, and when Bob has read some of it something happens.
    async fn talk(&mut self, trouble: impl Future<Output = ()>) {
        let numbers = self.said..self.said + MESSAGES;
        self.said = numbers.end;
        let (heard, mut hears) = watch::channel(0);
        let begin = numbers.start + AFTER;
        let (alice_eid, bob_eid) = (eid(ALICE), eid(BOB));
        let conversation = async {
            tokio::join!(
                say(&self.alice.device, &bob_eid, numbers.clone()),
                say(&self.bob.device, &alice_eid, numbers.clone()),
                hear(&mut self.bob.events, numbers.clone(), Some(heard)),
                hear(&mut self.alice.events, numbers.clone(), None),
                async {
                    hears.wait_for(|number| *number >= begin).await.unwrap();
                    trouble.await;
                }
            )
        };
        soon("the conversation to end", conversation).await;
    }

    /// The session that Alice has now.
    async fn session(&self) -> Session {
        soon("a session", self.alice.device.connected()).await.unwrap()
    }

    /// Alice has another session, whose first flight the server took. That is TLS's word: the server's own count is of
    /// those whose first flight was not lost on the way either.
    async fn returned_early(&self) {
        let session = self.session().await;
        assert_ne!(session.session_id, self.first.session_id);
        assert!(session.early, "{session:?}");
    }

    async fn metric(&self, series: impl Into<String>) -> f64 {
        metric(&self.server, &self.beside, series.into()).await
    }

    async fn migrations(&self, kind: &str) -> f64 {
        self.metric(migrations(kind)).await
    }

    /// The connection of the beginning has carried everything.
    async fn stayed(&self) {
        assert_eq!(self.session().await, self.first, "the session is the same");
        assert_eq!(self.metric(OPENS).await, 2.0, "Alice's and Bob's");
    }
}

async fn metric(server: &Arc<TestServer>, beside: &Handle, series: String) -> f64 {
    let server = server.clone();
    beside.spawn(async move { server.metric(&series).await }).await.unwrap()
}

fn migrations(kind: &str) -> String {
    format!("bimip_path_migrations_total{{kind=\"{kind}\"}}")
}

/// Sends numbers, a few of them at once.
async fn say(device: &Device, to: &Eid, numbers: Range<usize>) {
    let mut sending = VecDeque::new();
    for number in numbers {
        if sending.len() == WINDOW {
            let oldest: Ticket = sending.pop_front().unwrap();
            oldest.await.unwrap();
        }
        sending.push_back(device.submit(device.draft(to, Content::Text(number.to_string()))).unwrap());
    }
    for ticket in sending {
        ticket.await.unwrap();
    }
}

/// Reads the same numbers, each once and in order: one that came twice would be in the place of the next, also of the
/// next conversation.
async fn hear(events: &mut Events, numbers: Range<usize>, tell: Option<watch::Sender<usize>>) {
    for number in numbers {
        let message = loop {
            match events.next().await.expect("the device goes on") {
                Event::Message(message) => break message,
                Event::Refused(refused) => panic!("{refused:?}"),
                _ => {}
            }
        };
        assert_eq!(message.text(), Some(number.to_string().as_str()));
        if let Some(tell) = &tell {
            tell.send_replace(number);
        }
    }
}

async fn state(device: &Device, what: &str, fits: impl Fn(&State) -> bool) {
    soon(what, device.state().wait_for(|state| fits(state))).await.unwrap();
}

async fn over(device: &Device, transport: Transport) {
    state(
        device,
        "a session over the other transport",
        |state| matches!(state, State::Connected(session) if session.transport == transport),
    )
    .await;
}

/// Until so many packets of the phone have come to nothing: it has tried that often.
async fn tried(control: &Control, path: Path, protocol: Protocol, packets: u64) {
    soon("the phone to try", async {
        while control.counters().unwrap().of(path, Way::Up, protocol).blacked_out.packets < packets {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

fn moving() -> Plan {
    Plan { wifi: losing(Profile::WIFI, 0.02), lte: losing(Profile::LTE, 0.02), seed: 5 }
}

fn staying(wifi: Profile, seed: u64) -> Plan {
    Plan { wifi, lte: Profile::LTE, seed }
}

#[test]
fn a_phone_that_is_told_of_its_new_network_takes_the_connection_there() {
    play(
        moving(),
        |phone| phone,
        |mut world| async {
            let (control, device) = (world.control.clone(), world.alice.device.clone());
            for to in [Path::Lte, Path::Wifi] {
                world
                    .talk(async {
                        control.hand_over(to, GAP).unwrap().switched().await.unwrap();
                        device.network_changed().await.unwrap().expect("the connection is QUIC's");
                    })
                    .await;
            }
            world.talk(async {}).await;
            world.stayed().await;
            assert!(world.migrations("address_change").await >= 2.0);
            world
        },
    );
}

#[test]
fn a_phone_that_is_told_nothing_of_its_new_network_goes_on_there_all_the_same() {
    play(
        moving(),
        |phone| phone,
        |mut world| async {
            let control = world.control.clone();
            for to in [Path::Lte, Path::Wifi] {
                world
                    .talk(async {
                        control.hand_over(to, GAP).unwrap().switched().await.unwrap();
                    })
                    .await;
            }
            world.talk(async {}).await;
            world.stayed().await;
            // On its way back it has the address and port of before. A path whose challenge is not answered in time is
            // left again, and the phone's next packet makes the move once more, so that the difference stays; a return
            // taken for a failed move would be two less.
            let (changed, failed) = (world.migrations("address_change").await, world.migrations("failed").await);
            assert!(changed - failed >= 2.0, "{changed} changes of address and {failed} failed");
            world
        },
    );
}

#[test]
fn a_network_that_carries_nothing_to_the_phone_is_a_move_that_failed() {
    let mut deaf = Profile::LTE;
    deaf.down.loss = Loss::Random(1.0);
    play(
        Plan { wifi: Profile::WIFI, lte: deaf, seed: 12 },
        |phone| phone,
        |mut world| async {
            let (control, server, beside) = (world.control.clone(), world.server.clone(), world.beside.clone());
            world
                .talk(async {
                    control.hand_over(Path::Lte, GAP).unwrap().switched().await.unwrap();
                    while metric(&server, &beside, migrations("failed")).await < 1.0 {
                        tokio::task::yield_now().await;
                    }
                    control.hand_over(Path::Wifi, GAP).unwrap().switched().await.unwrap();
                })
                .await;
            world.talk(async {}).await;
            world
        },
    );
}

#[test]
fn a_nat_that_forgets_in_the_middle_of_a_conversation_is_not_noticed() {
    play(
        staying(Profile::BURSTY_3, 6),
        |phone| phone,
        |mut world| async {
            let control = world.control.clone();
            for _ in 0..3 {
                world
                    .talk(async {
                        control.rebind_nat(Path::Wifi).unwrap();
                    })
                    .await;
            }
            world.talk(async {}).await;
            world.stayed().await;
            assert!(world.migrations("nat_rebinding").await >= 3.0);
            world
        },
    );
}

#[test]
fn a_tunnel_of_some_seconds_ends_no_session() {
    play(
        staying(Profile::THIRD_GENERATION, 7),
        |phone| phone,
        |mut world| async {
            let control = world.control.clone();
            world
                .talk(async {
                    control.black_out(Path::Wifi, true).unwrap();
                    tried(&control, Path::Wifi, Protocol::Udp, TRIES).await;
                    control.black_out(Path::Wifi, false).unwrap();
                })
                .await;
            world.talk(async {}).await;
            world.stayed().await;
            world
        },
    );
}

#[test]
fn a_phone_that_is_told_of_the_end_of_a_tunnel_does_not_wait_for_the_old_connection() {
    play(
        staying(Profile::LOSS_2, 10),
        |phone| phone.transports(ONLY_QUIC),
        |mut world| async {
            let (control, device) = (world.control.clone(), world.alice.device.clone());
            world
                .talk(async {
                    control.black_out(Path::Wifi, true).unwrap();
                    tried(&control, Path::Wifi, Protocol::Udp, TRIES_IN_DOUBT).await;
                    control.black_out(Path::Wifi, false).unwrap();
                    assert_eq!(device.network_changed().await.unwrap(), None, "nothing moves");
                })
                .await;
            world.talk(async {}).await;
            world.returned_early().await;
            world
        },
    );
}

#[test]
fn out_of_a_long_tunnel_a_phone_returns_with_its_outbox_in_the_first_flight() {
    let options = |phone: Builder| phone.silence(IMPATIENT).transports(ONLY_QUIC);
    play(staying(Profile::LOSS_2, 8), options, |mut world| async {
        let (control, device) = (world.control.clone(), world.alice.device.clone());
        world
            .talk(async {
                control.black_out(Path::Wifi, true).unwrap();
                state(&device, "the path to be given up", |state| !matches!(state, State::Connected(_))).await;
                control.black_out(Path::Wifi, false).unwrap();
            })
            .await;
        world.talk(async {}).await;
        world.returned_early().await;
        world
    });
}

#[test]
fn a_tunnel_in_which_tcp_was_tried_too_is_no_network_without_quic() {
    let options = |phone: Builder| phone.silence(IMPATIENT).retry_quic_after(Duration::from_secs(3600));
    play(staying(Profile::CLEAN, 11), options, |mut world| async {
        let (control, device) = (world.control.clone(), world.alice.device.clone());
        world
            .talk(async {
                control.black_out(Path::Wifi, true).unwrap();
                tried(&control, Path::Wifi, Protocol::Tcp, 2).await;
                control.black_out(Path::Wifi, false).unwrap();
                over(&device, Transport::Quic).await;
            })
            .await;
        world.talk(async {}).await;
        assert_eq!(world.session().await.transport, Transport::Quic);
        world
    });
}

#[test]
fn where_udp_is_blocked_in_the_middle_the_conversation_goes_on_over_tcp_and_back_over_quic() {
    let options = |phone: Builder| phone.silence(IMPATIENT).retry_quic_after(Duration::from_secs(1));
    play(staying(Profile::LOSS_5, 9), options, |mut world| async {
        let (control, device) = (world.control.clone(), world.alice.device.clone());
        assert_eq!(world.first.transport, Transport::Quic);
        world
            .talk(async {
                control.block_udp(true).unwrap();
                over(&device, Transport::Tcp).await;
            })
            .await;
        world
            .talk(async {
                control.block_udp(false).unwrap();
                over(&device, Transport::Quic).await;
            })
            .await;
        world.talk(async {}).await;
        assert_eq!(world.session().await.transport, Transport::Quic);
        world
    });
}
