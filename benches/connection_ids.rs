//! Time to make and to read a connection id for a load balancer: encrypted in four passes, encrypted as one block, in plain,
//! and for comparison quinn's own.
//!
//! `cargo bench --bench connection_ids`

use std::hint::black_box;
use std::time::{Duration, Instant};

use bimip::config::{LbConfig, ServerId};
use bimip::transport::quic_lb::{Issuer, Layout};
use quinn::ConnectionIdGenerator;
use quinn_proto::HashedConnectionIdGenerator;

const IDS: u32 = 1_000_000;
const ROUNDS: u32 = 5;
const CONFIG_ID: u8 = 1;
const KEY: [u8; 16] = *b"a key of a bench";

/// Nanoseconds per id in the best round.
fn each(mut work: impl FnMut()) -> f64 {
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        (0..IDS).for_each(|_| work());
        best = best.min(begun.elapsed());
    }
    best.as_nanos() as f64 / f64::from(IDS)
}

/// Randomness from the operating system, as in the server.
fn random(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("the system has randomness");
}

fn main() {
    println!("nanoseconds an id, best of {ROUNDS} rounds of {IDS}: to make, to read from a datagram");
    let layouts = [
        ("2 + 8 bytes, four passes", 2, 8, Some(&KEY)),
        ("8 + 8 bytes, one block", 8, 8, Some(&KEY)),
        ("2 + 8 bytes, in plain", 2, 8, None),
    ];
    for (name, server_id_bytes, nonce_bytes, key) in layouts {
        let server_id = ServerId::new(&vec![7; server_id_bytes]).expect("a length that is allowed");
        let config = LbConfig { server_id: Some(server_id), config_id: CONFIG_ID, nonce_bytes, key_file: None };
        let issuer = Issuer::from_config(&config, key, random).expect("a layout").expect("a server id");
        let mut ids = issuer.generator();
        let making = each(|| _ = black_box(ids.generate_cid()));
        let layout = Layout::new(CONFIG_ID, server_id_bytes, nonce_bytes, key).expect("a layout");
        // A short header is one octet and the connection id.
        let datagram = [&[0x40][..], &ids.generate_cid(), &[0; 100]].concat();
        assert_eq!(layout.server_id_of_datagram(&datagram), Some(server_id));
        let reading = each(|| _ = black_box(layout.server_id_of_datagram(black_box(&datagram))));
        println!("{name}: {making:.0}, {reading:.0}");
    }
    let mut ids = HashedConnectionIdGenerator::new();
    println!("quinn's own: {:.0}", each(|| _ = black_box(ids.generate_cid())));
}
