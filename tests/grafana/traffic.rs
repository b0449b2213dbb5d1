//! Traffic of every kind that a panel shows, made with the client library.

use std::time::Duration;

use bimip::auth::dev::DevFiles;
use bimip::client::{Admission, Builder, Device, Events, Transport, Transports};
use bimip::wire::{AwarenessStatus, DeviceId, Eid};
use tokio::task::JoinSet;

use crate::common::{now_s, sign, within_bound};

/// A server to talk with.
#[derive(Clone)]
pub struct Place {
    /// Host and port.
    pub address: String,
    /// Whom to trust, and what signs tokens.
    pub files: DevFiles,
}

impl Place {
    /// A device of a user, not yet connected, that acknowledges what it gets.
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

/// A user.
pub fn eid(text: &str) -> Eid {
    Eid::parse(text).unwrap()
}

/// Some devices, whose events are read by tasks of their own.
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
    /// Signs them in; bob may see when alice is there.
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

    /// A bit of everything: messages both ways and over TCP, receipts, presence, pings, a move to another port, a return
    /// with early data, a device that had been away, a token that is refused, a request that is.
    pub async fn live(&mut self) {
        let everything = async {
            for number in 0..5 {
                let (to_bob, to_alice) = (eid(BOB), eid(ALICE));
                let there = self.alice.send_text(&to_bob, format!("{number}"));
                let back = self.bob.send_text(&to_alice, "and back");
                let over_tcp = self.carol.send_text(&to_bob, "over TCP");
                let (there, back, over_tcp) = tokio::join!(there, back, over_tcp);
                assert!(there.is_ok() && back.is_ok() && over_tcp.is_ok());
            }
            for status in [AwarenessStatus::Away, AwarenessStatus::Online] {
                self.alice.set_presence(status, true, None).await.unwrap();
            }
            self.bob.ping_device(&eid(ALICE), None).await.unwrap();
            self.alice.network_changed().await.unwrap();
            self.alice.ping().await.unwrap();
            let mut state = self.bob.state();
            state.borrow_and_update();
            self.bob.reconnect().await.unwrap();
            state.changed().await.unwrap();
            self.bob.connected().await.unwrap();
            // A wrong token, and a device that comes, reads what it missed and goes.
            let (stranger, _events) = self.place.device(CAROL, "stolen").token("no.such.token".to_owned()).connect().unwrap();
            assert!(stranger.connected().await.is_err(), "a token that nobody signed is refused");
            let (desk, _events) = self.place.device(BOB, "desk").resume_from(None).connect().unwrap();
            desk.connected().await.unwrap();
            desk.close().await;
        };
        within_bound("all that traffic", everything).await;
        while self.readers.try_join_next().is_some() {}
    }
}

async fn read(mut events: Events) {
    while events.next().await.is_some() {}
}
