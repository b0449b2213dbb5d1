//! The client library and the server over an emulated mobile network: whatever happens to the path during a conversation, no
//! message is lost or delivered twice, and each side receives in the order in which the other sent.
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

/// Timeout of every wait, also for a whole conversation with its trouble. It only ends a test that has failed.
const PATIENCE: Duration = Duration::from_secs(90);
/// Messages each way in one conversation.
const MESSAGES: usize = 120;
/// Messages in flight at once each way. Few, so that the conversation lasts longer than its trouble.
const WINDOW: usize = 8;
/// Messages after which the trouble begins.
const AFTER: usize = 30;

/// Time without a network during a handover.
const GAP: Duration = Duration::from_millis(200);
/// Packets that a phone sends into a tunnel before the tunnel ends. They take some seconds, because each waits longer than
/// the one before.
const TRIES: u64 = 9;
/// The same, but enough that the phone has knocked and doubts the path (protocol.md §1, A silent path).
const TRIES_IN_DOUBT: u64 = 18;
const ONLY_QUIC: Transports = Transports::Only(Transport::Quic);
/// Silence after which an impatient phone gives a path up.
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

/// The profile with random loss in each direction. `share`: from 0 to 1.
fn losing(mut profile: Profile, share: f64) -> Profile {
    (profile.up.loss, profile.down.loss) = (Loss::Random(share), Loss::Random(share));
    profile
}

/// One side of the conversation.
struct Side {
    device: Device,
    events: Events,
}

/// Alice with her phone, the server with Bob on its side of the network, and the emulated network between them.
struct World {
    alice: Side,
    bob: Side,
    /// Alice's first session.
    first: Session,
    /// Messages sent each way so far.
    said: usize,
    server: Arc<TestServer>,
    /// The runtime on the server's side of the network.
    beside: Handle,
    control: Control,
}

/// Runs a scene on the phone. Where no emulated network can be made, reports that and returns.
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

    /// Runs a conversation. After Bob has read `AFTER` messages, runs `trouble` beside it.
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

    /// Alice's present session; waits for one if necessary.
    async fn session(&self) -> Session {
        soon("a session", self.alice.device.connected()).await.unwrap()
    }

    /// Asserts that Alice has a new session whose early data TLS reports as accepted. The server's metric cannot be used: it
    /// counts a session only if the early data also was not lost on the way.
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

    /// Asserts that the first connection has carried everything.
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

/// Sends the numbers, at most `WINDOW` of them in flight.
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

/// Asserts that the next messages are these numbers, each once and in order. A number that came twice would take the place
/// of the next one, at the latest in the next conversation.
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

/// Waits until the black-out has dropped this many packets from the phone.
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
            // After the return the phone has its earlier address and port again. If a challenge is not answered in time, the
            // server abandons that path (one `failed` more), and the phone's next packet repeats the move (one
            // `address_change` more), so the difference stays the same. If the server took the return for a failed move, the
            // difference would be two less.
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
