//! Tests connection ids against the draft's test vectors, and what generators and balancers do with them.

use std::collections::HashSet;

use super::*;
use crate::random::Random;

/// The key of the draft's appendix B.2.
const KEY: &str = "8f95f09245765f80256934e50c66207f";

fn bytes(hex: &str) -> Vec<u8> {
    crate::config::from_hex(hex).unwrap()
}

fn layout(config_id: u8, server_id: usize, nonce: usize, key: Option<&str>) -> Layout {
    let key = key.map(|key| <[u8; 16]>::try_from(bytes(key)).unwrap());
    Layout::new(config_id, server_id, nonce, key.as_ref()).unwrap()
}

fn id(hex: &str) -> ServerId {
    ServerId::try_from(hex.to_owned()).unwrap()
}

fn config(server_id: &str, nonce_bytes: usize) -> LbConfig {
    LbConfig { server_id: Some(id(server_id)), nonce_bytes, config_id: 2, key_file: None }
}

fn issuer(config: &LbConfig, key: Option<&str>, random: fn(&mut [u8])) -> Issuer {
    let key = key.map(|key| <[u8; 16]>::try_from(bytes(key)).unwrap());
    Issuer::from_config(config, key.as_ref(), random).unwrap().unwrap()
}

/// Server id and nonce, decrypted.
fn plain(layout: &Layout, cid: &[u8]) -> Vec<u8> {
    let mut text = cid[1..].to_vec();
    if let Some(cipher) = &layout.cipher {
        cipher.decrypt(&mut text);
    }
    text
}

fn random(bytes: &mut [u8]) {
    getrandom::fill(bytes).unwrap();
}

#[test]
fn the_vectors_of_the_draft_hold_both_ways() {
    let vectors = [
        // Section 5.4.2.4, of which step 10 misprints one digit.
        (0, "31441a", "9c69c275", Some("fdf726a9893ec05c0632d3956680baf0"), "0767947d29be054a"),
        // Appendix B.1; the second line there has an odd number of digits.
        (0, "c4605e", "4504cc4f", None, "07c4605e4504cc4f"),
        // Appendix B.2; the last one is printed with configuration 3, but its first octet says 0.
        (0, "ed793a", "ee080dbf", Some(KEY), "0720b1d07b359d3c"),
        (1, "ed793a51d49b8f5fab65", "ee080dbf48", Some(KEY), "2fcc381bc74cb4fbad2823a3d1f8fed2"),
        (2, "ed793a51d49b8f5f", "ee080dbf48c0d1e5", Some(KEY), "504dd2d05a7b0de9b2b9907afb5ecf8cc3"),
        (0, "ed793a51d49b8f5fab", "ee080dbf48c0d1e55d", Some(KEY), "125779c9cc86beb3a3a4a3ca96fce4bfe0cdbc"),
        // Other lengths, computed by a second implementation, which was written from the draft in another language and gives
        // the same results for the vectors above.
        (6, "a1", "0001020304050607", Some(KEY), "c9fdc0f39774b0e43c41"),
        (3, "00c3", "fffffffffffffffe", Some(KEY), "6abb3cd39edea5f2d7afb3"),
        (5, "0b", "18171615141312111009080706050403027f", Some(KEY), "b39a8d8ea29318424cf4a7b4f8ccbdd2cd6dafc5"),
        (4, "0102030405060708090a0b", "c0ffeec0ffeec0ff", Some(KEY), "93f69d343451cbf2794ae2e26c20cd2bbd7c5b0c"),
    ];
    for (config_id, server_id, nonce, key, cid) in vectors {
        let layout = layout(config_id, server_id.len() / 2, nonce.len() / 2, key);
        assert_eq!(layout.cid(&bytes(server_id), &bytes(nonce)).as_ref(), bytes(cid), "{cid}");
        assert_eq!(layout.server_id_of(&bytes(cid)), Some(id(server_id)), "{cid}");
    }
}

#[test]
fn every_layout_of_the_draft_reads_what_it_writes_and_others_are_refused() {
    for server_id_bytes in 0..=16 {
        for nonce_bytes in 0..=20 {
            for key in [None, Some(KEY)] {
                let raw = key.map(|key| <[u8; 16]>::try_from(bytes(key)).unwrap());
                let made = Layout::new(5, server_id_bytes, nonce_bytes, raw.as_ref());
                if server_id_bytes == 0 || nonce_bytes < 4 || server_id_bytes + nonce_bytes > 19 {
                    assert_eq!(made.err(), Some(LayoutError::Lengths(server_id_bytes, nonce_bytes)));
                    continue;
                }
                let (layout, mut text) = (made.unwrap(), vec![0; server_id_bytes + nonce_bytes]);
                random(&mut text);
                let (server_id, nonce) = text.split_at(server_id_bytes);
                let cid = layout.cid(server_id, nonce);
                assert_eq!(cid.len(), layout.cid_bytes());
                assert_eq!(layout.server_id_of(&cid).as_deref(), Some(server_id));
                assert_eq!(cid[1..] == text, key.is_none());
            }
        }
    }
    assert_eq!(Layout::new(7, 1, 8, None).err(), Some(LayoutError::ConfigId(7)));
    assert_eq!(Layout::new(0, usize::MAX, 8, None).err(), Some(LayoutError::Lengths(usize::MAX, 8)));
}

#[test]
fn a_balancer_finds_the_server_in_either_header_and_nothing_in_what_a_client_made_up() {
    let layout = layout(2, 2, 8, Some(KEY));
    let cid = layout.cid(&[0, 0xC3], &[7; 8]);
    let short = [&[0x40][..], &cid, b"protected"].concat();
    let long = |cid: &[u8]| [&[0xC0, 0, 0, 0, 1, cid.len() as u8][..], cid, &[0], b"the rest"].concat();
    assert_eq!(layout.server_id_of_datagram(&short), Some(id("00c3")));
    assert_eq!(layout.server_id_of_datagram(&long(&cid)), Some(id("00c3")));
    // The layout knows no version, and does not need to.
    let mut other_version = long(&cid);
    other_version[1..5].copy_from_slice(&[0xBA; 4]);
    assert_eq!(layout.server_id_of_datagram(&other_version), Some(id("00c3")));

    // Cut off at every place.
    for datagram in [&short, &long(&cid)] {
        for end in 0..datagram.len() {
            let whole = if datagram[0] & 0x80 == 0 { 1 } else { 6 } + cid.len();
            assert_eq!(layout.server_id_of_datagram(&datagram[..end]).is_some(), end >= whole);
        }
    }
    // Another length, in the header or in the id; another configuration; no configuration.
    let longer = [&cid[..], &[0]].concat();
    let (mut misstated, mut rotated, mut unroutable) = (cid.to_vec(), cid.to_vec(), cid.to_vec());
    misstated[0] ^= 1;
    rotated[0] ^= 0x20;
    unroutable[0] |= 0xE0;
    for cid in [&longer[..], &cid[..10], &misstated, &rotated, &unroutable, &[]] {
        assert_eq!(layout.server_id_of_datagram(&long(cid)), None, "{cid:x?}");
    }
    for cid in [misstated, rotated, unroutable] {
        assert_eq!(layout.server_id_of_datagram(&[&[0x40][..], &cid, b"protected"].concat()), None);
    }
}

#[test]
fn encrypted_ids_count_up_from_a_random_start_and_plain_ones_are_random() {
    const MANY: usize = 1000;
    for key in [None, Some(KEY)] {
        let issuer = issuer(&config("a1b2", 8), key, random);
        let (mut first, mut second) = (issuer.generator(), issuer.generator());
        assert_eq!(first.cid_len(), 11);
        let mut nonces = Vec::new();
        let ids: HashSet<_> = (0..MANY)
            .flat_map(|_| [first.generate_cid(), second.generate_cid()])
            .inspect(|cid| {
                let plain = plain(&issuer.layout, cid);
                nonces.push(u64::from_be_bytes(plain[2..].try_into().unwrap()));
            })
            .collect();
        assert_eq!(ids.len(), 2 * MANY, "no id twice, from either endpoint");
        // Steps between the nonces of the first endpoint.
        let steps: HashSet<_> =
            nonces.iter().step_by(2).zip(nonces.iter().skip(2).step_by(2)).map(|(a, b)| b.wrapping_sub(*a)).collect();
        match key {
            Some(_) => assert_eq!(steps, HashSet::from([1])),
            None => assert!(steps.len() > MANY - 10),
        }
    }
}

#[test]
fn a_nonce_that_ends_goes_on_at_zero_and_in_all_its_bytes() {
    for nonce_bytes in [8, 13, 17] {
        let mut generator = issuer(&config("a1", nonce_bytes), Some(KEY), |bytes| bytes.fill(0xFF)).generator();
        let zero = vec![0; nonce_bytes];
        let mut one = zero.clone();
        one[nonce_bytes - 1] = 1;
        let ids = [generator.generate_cid(), generator.generate_cid()];
        assert_eq!(ids.map(|cid| plain(&generator.layout, &cid).split_off(1)), [zero, one]);
    }
}

#[test]
fn a_server_knows_its_own_ids_after_a_restart_and_no_others() {
    for key in [None, Some(KEY)] {
        let own = config("a1b2", 8);
        let cid = issuer(&own, key, random).generator().generate_cid();
        let knows = |config: &LbConfig, key| issuer(config, key, random).generator().validate(&cid).is_ok();
        assert!(knows(&own, key));
        assert!(!knows(&config("a1b3", 8), key), "another server's");
        assert!(!knows(&LbConfig { config_id: 3, ..own.clone() }, key), "another configuration's");
        assert!(!knows(&config("a1b2", 9), key), "another layout's");
        if key.is_some() {
            assert!(!knows(&own, Some("00000000000000000000000000000000")), "another key's");
        }
    }
}

#[test]
fn ids_of_a_server_of_no_pool_are_known_after_a_restart_and_none_that_others_make_up() {
    const MANY: usize = 50_000;
    // Drawn, so that a run in which one of 2^32 is guessed does not come at random.
    let (mut drawn, start) = (Random::new(1), |bytes: &mut [u8]| bytes.fill(7));
    let ids = |key: u8| Issuer::unbalanced(&[key; 32], start).unwrap().generator();
    let (mut own, restarted, other) = (ids(1), ids(1), ids(2));
    let mut seen = HashSet::new();
    for _ in 0..MANY {
        let cid = own.generate_cid();
        assert_eq!(cid.len(), own.cid_len());
        assert!(own.validate(&cid).is_ok() && restarted.validate(&cid).is_ok() && other.validate(&cid).is_err());
        seen.insert(cid);
        // One that somebody makes up, knowing this one.
        let mut made_up = cid.to_vec();
        drawn.fill(&mut made_up[1..]);
        assert!(own.validate(&ConnectionId::new(&made_up)).is_err());
    }
    assert_eq!(seen.len(), MANY);
}

#[test]
fn without_a_server_id_there_is_nothing_to_issue() {
    assert!(Issuer::from_config(&LbConfig::default(), None, random).unwrap().is_none());
}
