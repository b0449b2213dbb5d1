//! Traffic of every kind that a panel shows, made with the client library.

use std::time::Duration;

use bimip::auth::dev::DevFiles;
use bimip::client::{Admission, Builder, Device, Events, State, Transport, Transports};
use bimip::wire::{AwarenessStatus, DeviceId, Eid};
use tokio::task::JoinSet;

use crate::common::{now_s, sign, within_bound};

/// How to reach a server.
#[derive(Clone)]
pub struct Place {
    /// Host and port.
    pub address: String,
    /// The trusted authority and the key that signs tokens.
    pub files: DevFiles,
}

impl Place {
    /// A device of a user, not yet connected, that acknowledges delivered messages by itself.
    pub fn device(&self, user: &str, device: &str) -> Builder {
        let token = sign(&self.files.token_key, user, None, now_s(), Duration::from_secs(3600));
        Device::builder()
            .server(self.address.clone())
            .server_name("localhost")
            .roots_pem(&self.files.ca)
            .identity(eid(user), DeviceId::parse(device).unwrap())
            .token(token)
            .auto_deliver(true)
    }
}

/// Parses a user.
pub fn eid(text: &str) -> Eid {
    Eid::parse(text).unwrap()
}

/// Several devices. A task for each reads its events.
pub struct Crowd {
    place: Place,
    alice: Device,
    bob: Device,
    /// Over TCP.
    carol: Device,
    readers: JoinSet<()>,
}

const ALICE: &str = "alice@localhost";
const BOB: &str = "bob@localhost";
const CAROL: &str = "carol@localhost";

impl Crowd {
    /// Signs the devices in and adds bob to alice's subscribers.
    pub async fn sign_in(place: Place) -> Crowd {
        let mut readers = JoinSet::new();
        let mut devices = Vec::new();
        for (user, over) in [(ALICE, Transport::Quic), (BOB, Transport::Quic), (CAROL, Transport::Tcp)] {
            let (device, events) = place.device(user, "phone").transports(Transports::Only(over)).connect().unwrap();
            readers.spawn(read(events));
            within_bound("a session", device.connected()).await.unwrap();
            devices.push(device);
        }
        let [alice, bob, carol] = devices.try_into().ok().unwrap();
        within_bound("an answer", alice.add_subscriber(&eid(BOB), Admission::default())).await.unwrap();
        Crowd { place, alice, bob, carol, readers }
    }

    /// One round of everything: messages both ways and over TCP, receipts, presence, pings, a move to another port, a return
    /// with early data, a device that was away, a refused token, a refused request.
    pub async fn live(&mut self) {
        let (to_bob, to_alice) = (eid(BOB), eid(ALICE));
        for number in 0..5 {
            let there = self.alice.send_text(&to_bob, format!("{number}"));
            let back = self.bob.send_text(&to_alice, "and back");
            let over_tcp = self.carol.send_text(&to_bob, "over TCP");
            let sent = within_bound("three answers", async { tokio::join!(there, back, over_tcp) }).await;
            assert!(sent.0.is_ok() && sent.1.is_ok() && sent.2.is_ok(), "{sent:?}");
        }
        for status in [AwarenessStatus::Away, AwarenessStatus::Online] {
            within_bound("presence", self.alice.set_presence(status, true, None)).await.unwrap();
        }
        within_bound("a relayed ping", self.bob.ping_device(&to_alice, None)).await.unwrap();
        within_bound("another port", self.alice.network_changed()).await.unwrap();
        within_bound("a ping from there", self.alice.ping()).await.unwrap();

        // Another connection replaces the device, and the device reconnects: a return with early data.
        let (other, _events) = self.place.device(BOB, "phone").connect().unwrap();
        within_bound("another one", other.connected()).await.unwrap();
        let mut state = self.bob.state();
        drop(within_bound("to be replaced", state.wait_for(|state| matches!(state, State::Closed(_)))).await.unwrap());
        within_bound("the call", self.bob.reconnect()).await.unwrap();
        assert!(within_bound("a return", self.bob.connected()).await.unwrap().early, "with 0-RTT");

        let (stranger, _events) =
            self.place.device(CAROL, "stolen").token("no.such.token".to_owned()).connect().unwrap();
        assert!(within_bound("a refusal", stranger.connected()).await.is_err(), "nobody signed that token");
        let (desk, _events) = self.place.device(BOB, "desk").resume_from(None).connect().unwrap();
        within_bound("a second device", desk.connected()).await.unwrap();
        within_bound("it to leave", desk.close()).await;
        while self.readers.try_join_next().is_some() {}
    }
}

async fn read(mut events: Events) {
    while events.next().await.is_some() {}
}
