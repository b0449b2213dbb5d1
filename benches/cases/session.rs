//! Texts from one session to another: everything that the server does for a message except for the transport and the disk.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bimip::config::{LimitsConfig, Rate};
use bimip::hub::Hub;
use bimip::observe::Metrics;
use bimip::session::{Flood, Services, Settings, drive};
use bimip::store::{Embedded, LogObserver, Memory, Options, Store};
use bimip::wire::proto::SessionOpen;
use bimip::wire::{Eid, Lane, Payload, encode_frame, envelope};

use super::link::Device;
use super::{Run, credentials, device, eid, runtime, text_frame};

/// Texts in flight at once, as for a pair in `bimip bench load`.
pub(super) const AT_ONCE: usize = 16;

fn services(folder: &Path, users: &[Eid]) -> (Arc<Services>, Vec<String>) {
    let unlimited = Rate { per_second: 0, burst: 0 };
    let limits = LimitsConfig {
        frames: unlimited,
        messages: unlimited,
        awareness: unlimited,
        sign_ins: unlimited,
        connections_per_address: 0,
    };
    let settings = Settings {
        server_name: "bench".into(),
        domains: Vec::new(),
        media_base: None,
        open_within: bimip::limits::SESSION_OPEN_WITHIN,
        release_within: bimip::limits::RELEASE_WITHIN,
        ping_interval: bimip::limits::PING_INTERVAL,
        frame_bytes_max: bimip::limits::FRAME_BYTES_MAX,
        idle_timeout: bimip::limits::IDLE_TIMEOUT,
    };
    let (verifier, tokens) = credentials(folder, users);
    let services = Services {
        hub: Arc::new(Hub::default()),
        flood: Flood::new(limits),
        verifier,
        metrics: Arc::new(Metrics::new()),
        settings,
        // A counter instead of randomness makes every run the same. Ids still differ.
        random: Box::new({
            let next = AtomicU64::new(1);
            move |bytes| {
                let number = next.fetch_add(1, Ordering::Relaxed).to_be_bytes();
                bytes.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&number[..chunk.len()]));
            }
        }),
    };
    (Arc::new(services), tokens)
}

/// Rounds of `AT_ONCE` texts, from a pipelined sender to the recipient.
pub(super) fn text_through(folder: &Path) -> Run {
    let users = [eid("alice"), eid("bob")];
    let (services, tokens) = services(folder, &users);
    let hub: Arc<dyn LogObserver> = services.hub.clone();
    let store = Embedded::open_memory(Memory::new(), Options::default(), hub).expect("a store");
    let store: Arc<dyn Store> = Arc::new(store);
    let runtime = runtime();
    let devices: Vec<Device> = users
        .iter()
        .zip(&tokens)
        .map(|(user, token)| {
            let end = Device::default();
            runtime.spawn(drive(end.link(), services.clone(), store.clone()));
            let open = SessionOpen {
                identity: Some(user.device_identity(&device("phone"))),
                token: token.clone(),
                pipelined: true,
                ..SessionOpen::default()
            };
            end.open(Lane::Control);
            end.send(Lane::Control, &encode_frame(&envelope(Payload::SessionOpen(open))));
            // Take the SessionAccept.
            runtime.block_on(end.take(1));
            end.open(Lane::Chat);
            end
        })
        .collect();
    let mut number = 0;
    Box::new(move |times| {
        for _ in 0..times {
            for _ in 0..AT_ONCE {
                number += 1;
                devices[0].send(Lane::Chat, &text_frame(number));
            }
            // The sender gets the VersionUpdates, the recipient the messages.
            runtime.block_on(async {
                devices[0].take(AT_ONCE).await;
                devices[1].take(AT_ONCE).await;
            });
        }
    })
}
