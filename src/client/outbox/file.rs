//! An outbox in one small file: a journal that is appended to, and written anew when too much of it is history.
//!
//! The journal is a magic word and records: length and checksum (four bytes each, little endian), then one envelope of
//! the protocol. A SessionOpen names the owner, a text or media request is a message to keep, a VersionUpdate names one to
//! forget, a SyncAck is the place in the log. What a crash leaves of a last record fails its checksum and is cut off.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use prost::Message as _;

use super::{Backlog, Draft, Outbox};
use crate::client::event::{Content, Media};
use crate::client::limits::{FRAME_BYTES_MAX, JOURNAL_BYTES_MAX, JOURNAL_DEAD_BYTES_MAX, OUTBOX_MESSAGES_MAX};
use crate::wire::proto::{MediaPayloadRequest, SessionOpen, SyncAck, TextPayloadRequest, VersionUpdate};
use crate::wire::{Eid, LocalId, MediaType, Payload, Sequence, envelope, open_envelope};

/// What such a file begins with; the last byte is the format's version.
const MAGIC: &[u8; 8] = b"BIMIPOB\x01";
/// Length and checksum of a record.
const HEAD_BYTES: usize = 8;

/// Keeps unanswered messages and the place in the log in a file, for one device of one user: another user's is refused
/// (`InvalidData`), so an application in which somebody else signs in takes another file, or deletes this one. An application that was
/// killed, or a machine that lost its power, finds every message that the device had taken.
#[derive(Debug)]
pub struct FileOutbox {
    path: PathBuf,
    file: File,
    /// Where the next record goes; whatever lies behind was not written whole.
    len: u64,
    /// Where the wanted messages stand, in their order.
    kept: BTreeMap<u64, u64>,
    places: HashMap<LocalId, u64>,
    kept_bytes: u64,
    cursor: Option<Sequence>,
    /// Whose messages these are, once that was said.
    owner: Option<Eid>,
    /// Handed out by the first `load`.
    backlog: Vec<Draft>,
    /// Held for as long as the outbox: two devices on one file would write over each other.
    _lock: File,
}

impl FileOutbox {
    /// Opens the file, or makes it. Beside it stand, under its name, a `.lock` and for moments a `.new`.
    ///
    /// # Errors
    /// Whatever the system says; `WouldBlock` when another process has it open, `InvalidData` when it is another kind of
    /// file.
    pub fn open(path: impl AsRef<Path>) -> io::Result<FileOutbox> {
        let path = path.as_ref().to_owned();
        let lock = options().open(beside(&path, ".lock"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => {
                let taken = format!("the outbox {} is in use by another process", path.display());
                io::Error::new(io::ErrorKind::WouldBlock, taken)
            }
            TryLockError::Error(error) => error,
        })?;
        let file = options().open(&path)?;
        let mut outbox = FileOutbox {
            path,
            file,
            len: 0,
            kept: BTreeMap::new(),
            places: HashMap::new(),
            kept_bytes: 0,
            cursor: None,
            owner: None,
            backlog: Vec::new(),
            _lock: lock,
        };
        outbox.read()?;
        Ok(outbox)
    }

    // --- Reading ----------------------------------------------------------------------------------------------------

    fn read(&mut self) -> io::Result<()> {
        let whole = self.file.metadata()?.len();
        if whole > JOURNAL_BYTES_MAX {
            return Err(self.invalid("is longer than an outbox can be"));
        }
        let mut bytes = Vec::new();
        self.file.read_to_end(&mut bytes)?;
        if bytes.len() < MAGIC.len() && MAGIC.starts_with(&bytes) {
            // New, or the process ended while it was made.
            return self.start();
        }
        let Some(mut rest) = bytes.strip_prefix(MAGIC.as_slice()) else {
            return Err(self.invalid("is not an outbox"));
        };
        self.len = MAGIC.len() as u64;
        let mut drafts: BTreeMap<u64, Draft> = BTreeMap::new();
        while let Some(record) = next_record(rest) {
            let Ok(scheme) = open_envelope(record) else { break };
            let (place, length) = (self.len, (HEAD_BYTES + record.len()) as u64);
            match scheme.payload {
                Some(Payload::TextPayloadRequest(text)) => {
                    if let Some(draft) = text_draft(text) {
                        self.keep(&draft.local_id, place, length);
                        drafts.insert(place, draft);
                    }
                }
                Some(Payload::MediaPayloadRequest(media)) => {
                    if let Some(draft) = media_draft(media) {
                        self.keep(&draft.local_id, place, length);
                        drafts.insert(place, draft);
                    }
                }
                Some(Payload::VersionUpdate(done)) => {
                    if let Some(place) = LocalId::parse(&done.message_id_local).ok().and_then(|id| self.forget(&id)) {
                        drafts.remove(&place);
                    }
                }
                Some(Payload::SessionOpen(open)) => self.owner = Eid::from_identity(open.identity.as_ref()).ok(),
                Some(Payload::SyncAck(sync)) => self.cursor = Some(Sequence::from_wire(sync.sequence)),
                _ => {}
            }
            self.len += length;
            rest = &rest[length as usize..];
        }
        if self.len < whole {
            tracing::warn!(path = %self.path.display(), bytes = whole - self.len, "the outbox has a torn end: cut off");
            self.file.set_len(self.len)?;
            self.file.sync_all()?;
        }
        // A local id that was kept twice has its older place among the drafts still.
        drafts.retain(|place, _| self.kept.contains_key(place));
        self.backlog = drafts.into_values().collect();
        Ok(())
    }

    fn start(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(MAGIC)?;
        self.file.sync_all()?;
        sync_folder(&self.path)?;
        self.len = MAGIC.len() as u64;
        Ok(())
    }

    fn invalid(&self, what: &str) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, format!("{} {what}", self.path.display()))
    }

    // --- Writing ----------------------------------------------------------------------------------------------------

    /// Writes a record whole, or leaves its remains to be written over.
    fn append(&mut self, record: &[u8]) -> io::Result<u64> {
        let place = self.len;
        self.file.seek(SeekFrom::Start(place))?;
        if let Err(error) = self.file.write_all(record) {
            // Remains that stay are cut off by the next reader, as their checksum fails.
            let _ = self.file.set_len(place);
            return Err(error);
        }
        self.len += record.len() as u64;
        Ok(place)
    }

    fn keep(&mut self, local_id: &LocalId, place: u64, length: u64) {
        self.forget(local_id);
        self.places.insert(local_id.clone(), place);
        self.kept.insert(place, length);
        self.kept_bytes += length;
    }

    /// Where it stood.
    fn forget(&mut self, local_id: &LocalId) -> Option<u64> {
        let place = self.places.remove(local_id)?;
        self.kept_bytes -= self.kept.remove(&place).unwrap_or(0);
        Some(place)
    }

    /// Writes the journal anew once history outweighs what is wanted. What fails leaves the old one in use.
    fn compact_if_due(&mut self) -> io::Result<()> {
        if self.len <= 2 * self.kept_bytes + JOURNAL_DEAD_BYTES_MAX {
            return Ok(());
        }
        let beside = beside(&self.path, ".new");
        let mut new = options().truncate(true).open(&beside)?;
        new.write_all(MAGIC)?;
        let mut len = MAGIC.len() as u64;
        if let Some(owner) = &self.owner {
            let record = record(owner_record(owner));
            new.write_all(&record)?;
            len += record.len() as u64;
        }
        let mut moved = BTreeMap::new();
        for (place, length) in &self.kept {
            self.file.seek(SeekFrom::Start(*place))?;
            if io::copy(&mut (&self.file).take(*length), &mut new)? != *length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            moved.insert(*place, (len, *length));
            len += length;
        }
        if let Some(cursor) = self.cursor {
            let record = record(cursor_record(cursor));
            new.write_all(&record)?;
            len += record.len() as u64;
        }
        new.sync_all()?;
        std::fs::rename(&beside, &self.path)?;
        // From here on the new one is the outbox, whatever else fails.
        self.file = new;
        self.len = len;
        for place in self.places.values_mut() {
            if let Some((new, _)) = moved.get(place) {
                *place = *new;
            }
        }
        self.kept = moved.into_values().collect();
        sync_folder(&self.path)
    }
}

impl Outbox for FileOutbox {
    fn load(&mut self, owner: &Eid) -> io::Result<Backlog> {
        match &self.owner {
            Some(other) if other != owner => {
                return Err(self.invalid(&format!("holds messages of {other}, not of {owner}")));
            }
            Some(_) => {}
            None => {
                self.append(&record(owner_record(owner)))?;
                self.file.sync_data()?;
                self.owner = Some(owner.clone());
            }
        }
        Ok(Backlog { drafts: std::mem::take(&mut self.backlog), cursor: self.cursor })
    }

    /// On the disk when it returns.
    fn insert(&mut self, draft: &Draft) -> io::Result<()> {
        if self.kept.len() >= OUTBOX_MESSAGES_MAX {
            return Err(io::Error::other("the outbox file is full"));
        }
        self.compact_if_due()?;
        let record = record(draft_record(draft));
        if record.len() > FRAME_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the message is longer than a frame"));
        }
        let place = self.append(&record)?;
        if let Err(error) = self.file.sync_data() {
            // It was told to have failed: it must not come back.
            self.len = place;
            let _ = self.file.set_len(place);
            return Err(error);
        }
        self.keep(&draft.local_id, place, record.len() as u64);
        Ok(())
    }

    /// Not waited for: what a crash brings back is sent once more, and taken once.
    fn remove(&mut self, local_id: &LocalId) -> io::Result<()> {
        if self.places.contains_key(local_id) {
            let done = VersionUpdate { message_id_local: local_id.to_string(), ..Default::default() };
            self.append(&record(Payload::VersionUpdate(done)))?;
            self.forget(local_id);
        }
        self.compact_if_due()
    }

    /// Not waited for: what a crash forgets is delivered once more.
    fn advance(&mut self, cursor: Sequence) -> io::Result<()> {
        if self.cursor != Some(cursor) {
            self.append(&record(cursor_record(cursor)))?;
            self.cursor = Some(cursor);
        }
        self.compact_if_due()
    }
}

// --- Records --------------------------------------------------------------------------------------------------------

fn record(payload: Payload) -> Vec<u8> {
    let body = envelope(payload).encode_to_vec();
    // A draft has a bound that is far below; the rest is an id or a number.
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let mut record = Vec::with_capacity(HEAD_BYTES + body.len());
    record.extend_from_slice(&length.to_le_bytes());
    record.extend_from_slice(&checksum(&body).to_le_bytes());
    record.extend_from_slice(&body);
    record
}

/// The first record's body, if it is whole.
fn next_record(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let body = rest.get(..usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
    (!body.is_empty() && checksum(body) == u32::from_le_bytes(*sum)).then_some(body)
}

fn draft_record(draft: &Draft) -> Payload {
    let to = vec![draft.to.identity()];
    let message_id_local = draft.local_id.to_string();
    match &draft.content {
        Content::Text(text) => Payload::TextPayloadRequest(TextPayloadRequest {
            to,
            content: text.clone(),
            message_id_local,
            created_at: draft.created_at,
            ..Default::default()
        }),
        Content::Media(media) => Payload::MediaPayloadRequest(MediaPayloadRequest {
            to,
            message_id_local,
            r#type: media.kind.code(),
            caption: media.caption.clone(),
            thumbnail_url: media.thumbnail_url.clone(),
            cdn_url_id: media.url.clone(),
            media_size_bytes: media.size_bytes,
            created_at: draft.created_at,
            ..Default::default()
        }),
    }
}

fn owner_record(owner: &Eid) -> Payload {
    Payload::SessionOpen(SessionOpen { identity: Some(owner.identity()), ..Default::default() })
}

fn cursor_record(cursor: Sequence) -> Payload {
    Payload::SyncAck(SyncAck { sequence: cursor.wire() })
}

fn text_draft(text: TextPayloadRequest) -> Option<Draft> {
    Some(Draft {
        local_id: LocalId::parse(&text.message_id_local).ok()?,
        to: Eid::from_identity(text.to.first()).ok()?,
        content: Content::Text(text.content),
        created_at: text.created_at,
    })
}

fn media_draft(media: MediaPayloadRequest) -> Option<Draft> {
    Some(Draft {
        local_id: LocalId::parse(&media.message_id_local).ok()?,
        to: Eid::from_identity(media.to.first()).ok()?,
        content: Content::Media(Media {
            kind: MediaType::from_code(media.r#type)?,
            url: media.cdn_url_id,
            caption: media.caption,
            thumbnail_url: media.thumbnail_url,
            size_bytes: media.media_size_bytes,
        }),
        created_at: media.created_at,
    })
}

/// CRC-32 as zip and Ethernet have it, bit by bit: a message takes microseconds, its way to the disk a thousand times
/// that.
fn checksum(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

// --- Files ----------------------------------------------------------------------------------------------------------

/// Read and write, made if it is not there; on Unix for nobody but its owner, as it holds what was written.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// A name in a folder is durable once the folder is; other systems than Unix have no such call.
fn sync_folder(path: &Path) -> io::Result<()> {
    if cfg!(unix) {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
