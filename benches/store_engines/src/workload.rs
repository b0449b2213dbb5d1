//! What a messaging log writes: a stream of messages that depends only on the seed.
//!
//! Message `i` can be made again at any time, so the crash test needs no second record of what was written.

use std::collections::HashMap;

pub const USERS: u64 = 2_000;

/// One message in this many is sent by [`HEAVY_USER`], so that one log is long enough for the range read.
const HEAVY_SHARE: u64 = 32;
pub const HEAVY_USER: u64 = 0;

const TEXT_BYTES: usize = 150;

/// The keyspaces; `as usize` indexes an engine's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// chat id (16 bytes) ‖ version (u64 BE) → the message, about 250 bytes
    Messages,
    /// hash (32 random bytes) → chat id ‖ version
    Dedup,
    /// user hash (16 bytes) ‖ sequence (u64 BE) → chat id ‖ version ‖ 16 bytes of state
    Logs,
}

impl Space {
    pub const ALL: [Space; 3] = [Space::Messages, Space::Dedup, Space::Logs];

    pub const fn name(self) -> &'static str {
        match self {
            Space::Messages => "messages",
            Space::Dedup => "dedup",
            Space::Logs => "logs",
        }
    }
}

pub struct Put {
    pub space: Space,
    pub key: Vec<u8>,
    pub value: Vec<u8>,
}

/// The four puts of one message: the message, its dedup record, the sender's and the recipient's log entry.
pub struct Message {
    pub puts: [Put; 4],
}

impl Message {
    pub fn message_key(&self) -> &[u8] {
        &self.puts[0].key
    }

    pub fn dedup_key(&self) -> &[u8] {
        &self.puts[1].key
    }
}

pub struct Workload {
    rng: SplitMix64,
    /// Last version of each chat. Key: its two users, the smaller first.
    versions: HashMap<(u64, u64), u64>,
    /// Last sequence of each user's log.
    sequences: Vec<u64>,
    made: u64,
}

impl Workload {
    pub fn new(seed: u64) -> Self {
        Self {
            rng: SplitMix64(seed),
            versions: HashMap::new(),
            sequences: vec![0; USERS as usize],
            made: 0,
        }
    }

    /// Continues after the first `made` messages of the stream.
    pub fn resume(seed: u64, made: u64) -> Self {
        let mut workload = Self::new(seed);
        while workload.made < made {
            workload.message();
        }
        workload
    }

    pub fn made(&self) -> u64 {
        self.made
    }

    pub fn last_sequence(&self, user: u64) -> u64 {
        self.sequences[user as usize]
    }

    pub fn group(&mut self, size: usize) -> Vec<Message> {
        (0..size).map(|_| self.message()).collect()
    }

    pub fn message(&mut self) -> Message {
        let (from, to) = self.pair();
        let pair = (from.min(to), from.max(to));
        let version = self.versions.entry(pair).or_insert(0);
        *version += 1;
        let version = *version;
        let chat = id16(pair.0 << 32 | pair.1);
        let reference = [chat.as_slice(), &version.to_be_bytes()].concat();
        let time = 1_700_000_000_000 + self.made * 7;
        self.made += 1;

        let value = self.message_value(from, to, time);
        let dedup: Vec<u8> = (0..4).flat_map(|_| self.rng.next().to_be_bytes()).collect();
        Message {
            puts: [
                Put {
                    space: Space::Messages,
                    key: reference.clone(),
                    value,
                },
                Put {
                    space: Space::Dedup,
                    key: dedup,
                    value: reference.clone(),
                },
                self.log_entry(from, &reference, time),
                self.log_entry(to, &reference, time),
            ],
        }
    }

    fn pair(&mut self) -> (u64, u64) {
        let from = match self.rng.below(HEAVY_SHARE) {
            0 => HEAVY_USER,
            _ => self.rng.below(USERS),
        };
        let to = (from + 1 + self.rng.below(USERS - 1)) % USERS;
        (from, to)
    }

    fn log_entry(&mut self, user: u64, reference: &[u8], time: u64) -> Put {
        let sequence = &mut self.sequences[user as usize];
        *sequence += 1;
        let value = [reference, &time.to_be_bytes(), &[1, 0, 0, 0, 0, 0, 0, 0]].concat();
        Put {
            space: Space::Logs,
            key: log_key(user, *sequence),
            value,
        }
    }

    /// A message id, both addresses, times and flags, then words: about as compressible as real chat.
    fn message_value(&mut self, from: u64, to: u64, time: u64) -> Vec<u8> {
        let mut value = Vec::with_capacity(256);
        value.extend(self.rng.next().to_be_bytes());
        value.extend(self.rng.next().to_be_bytes());
        value
            .extend(format!("user-{from:04}@chat.example/phone>user-{to:04}@chat.example").bytes());
        value.extend(time.to_be_bytes());
        value.extend((time + 3).to_be_bytes());
        value.extend([1, 0, 0, 1]);
        let end = value.len() + TEXT_BYTES;
        while value.len() < end {
            value.extend(WORDS[self.rng.below(WORDS.len() as u64) as usize].bytes());
            value.push(b' ');
        }
        value.truncate(end);
        value
    }
}

pub fn log_key(user: u64, sequence: u64) -> Vec<u8> {
    [id16(user).as_slice(), &sequence.to_be_bytes()].concat()
}

/// Spreads an id over 16 bytes as a hash would.
fn id16(id: u64) -> [u8; 16] {
    let mut mix = SplitMix64(id ^ 0x5bd1_e995_7f4a_7c15);
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&mix.next().to_be_bytes());
    bytes[8..].copy_from_slice(&mix.next().to_be_bytes());
    bytes
}

/// Vigna's SplitMix64: a few cycles a number, and the same numbers on every machine and release.
pub struct SplitMix64(pub u64);

impl SplitMix64 {
    #[allow(clippy::should_implement_trait)] // The sequence is endless, so an `Option` would be useless.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Slightly biased, which does not matter for bounds this small.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

const WORDS: [&str; 64] = [
    "the",
    "train",
    "is",
    "late",
    "again",
    "see",
    "you",
    "at",
    "nine",
    "then",
    "okay",
    "thanks",
    "for",
    "bringing",
    "bread",
    "and",
    "coffee",
    "we",
    "will",
    "be",
    "there",
    "soon",
    "did",
    "anyone",
    "call",
    "mother",
    "today",
    "not",
    "yet",
    "but",
    "I",
    "can",
    "after",
    "work",
    "maybe",
    "tomorrow",
    "morning",
    "what",
    "a",
    "game",
    "yesterday",
    "unbelievable",
    "really",
    "sorry",
    "just",
    "read",
    "this",
    "now",
    "where",
    "are",
    "keys",
    "on",
    "kitchen",
    "table",
    "near",
    "window",
    "good",
    "night",
    "sleep",
    "well",
    "photo",
    "looks",
    "great",
    "haha",
];
