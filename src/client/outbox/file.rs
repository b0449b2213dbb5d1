//! An outbox in one small file: a journal to which records are appended, and which is rewritten when too much of it is
//! obsolete.
//!
//! The journal is an 8-byte magic followed by records: length and checksum (four bytes each, little endian), then one
//! envelope of the protocol. A SessionOpen names the owner, a text or media request is a message to keep, a
//! VersionUpdate names a message to forget, and a SyncAck is the position in the log. A record that a crash left
//! incomplete fails its checksum and is cut off. Where records follow the damage it was no crash alone, and the file is set
//! aside first.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use prost::Message as _;

use super::{Backlog, Draft, Outbox};
use crate::client::event::{Content, Media};
use crate::client::limits::{JOURNAL_BYTES_MAX, JOURNAL_DEAD_BYTES_MAX, OUTBOX_MESSAGES_MAX};
use crate::wire::proto::{MediaPayloadRequest, SessionOpen, SyncAck, TextPayloadRequest, VersionUpdate};
use crate::wire::{DEVICE_FRAME_BYTES_MAX, Eid, LocalId, MediaType, Payload, Sequence, envelope, open_envelope};

/// The first bytes of a journal; the last one is the format's version.
const MAGIC: &[u8; 8] = b"BIMIPOB\x01";
/// Size of a record's length and checksum, in bytes.
const HEAD_BYTES: usize = 8;
/// A record's first byte: the tag of the envelope's `route`.
const ROUTE_TAG: u8 = 0x08;

/// An [`Outbox`] in a file, for one device of one user on one server. Every message that the device has taken survives a kill of the
/// application and a loss of power.
///
/// If another user signs in, [`Outbox::load`] refuses the file with `InvalidData`: use another file for each user, or
/// delete this one.
///
/// ```no_run
/// # use bimip::client::{Builder, FileOutbox};
/// # fn example(builder: Builder) -> std::io::Result<Builder> {
/// let outbox = FileOutbox::open("alice.outbox")?;
/// let builder = builder.outbox(Box::new(outbox));
/// # Ok(builder)
/// # }
/// ```
#[derive(Debug)]
pub struct FileOutbox {
    path: PathBuf,
    file: File,
    /// Where the next record goes. Anything behind it is an incomplete record.
    len: u64,
    /// Place and length of each live message, in their order.
    kept: BTreeMap<u64, u64>,
    places: HashMap<LocalId, u64>,
    kept_bytes: u64,
    /// A sync has failed. The system may take for written what never reached the disk, also records before that one, and a
    /// reader would stop at such a hole. So no message is promised before the whole file has been written anew.
    unsure: bool,
    cursor: Option<Sequence>,
    /// The user whose messages these are, once known.
    owner: Option<Eid>,
    /// Messages read from the file; the first `load` returns them.
    backlog: Vec<Draft>,
    /// Locked as long as the outbox exists: two devices would overwrite each other's records in one file.
    _lock: File,
}

/// Place and length of each live message in the new file, by its place in the old one.
type Moved = BTreeMap<u64, (u64, u64)>;

impl FileOutbox {
    /// Opens the file, or creates it. Beside it are a lock file with the suffix `.lock` and, while the journal is
    /// rewritten, one with the suffix `.new`. On Unix only the owner can read them.
    ///
    /// If the file is damaged, what is before the damage is used. If more than an incomplete last record is lost by that,
    /// the whole file is set aside first, with the suffix `.damaged` in place of an earlier one, and the log says so.
    ///
    /// # Errors
    /// - Any error of the file system, also if a damaged file cannot be set aside, as on a full disk.
    /// - `WouldBlock` if another process, or another device of this one, has the file open.
    /// - `InvalidData` if it is not an outbox or is longer than an outbox can be ([`JOURNAL_BYTES_MAX`]).
    /// - `Unsupported` if the system or the file system has no locks. Linux, Android, macOS, iOS, Windows and the BSDs have
    ///   them; some network file systems have not.
    pub fn open(path: impl AsRef<Path>) -> io::Result<FileOutbox> {
        let path = path.as_ref().to_owned();
        let lock = options().open(beside(&path, ".lock"))?;
        try_lock(&lock).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => {
                let taken = format!("the outbox {} is in use by another device or process", path.display());
                io::Error::new(io::ErrorKind::WouldBlock, taken)
            }
            kind => io::Error::new(kind, format!("the outbox {} cannot be locked: {error}", path.display())),
        })?;
        let file = options().open(&path)?;
        let mut outbox = FileOutbox {
            path,
            file,
            len: 0,
            kept: BTreeMap::new(),
            places: HashMap::new(),
            kept_bytes: 0,
            unsure: false,
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
            // The file is new, or the process ended while creating it.
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
            let lost = whole - self.len;
            if bytes.get(self.len as usize..).is_some_and(holds_record) {
                let aside = self.set_aside(&bytes).map_err(|error| {
                    let why = format!("{} is damaged, and cannot be set aside: {error}", self.path.display());
                    io::Error::new(error.kind(), why)
                })?;
                tracing::error!(path = %aside.display(), bytes = lost, "the outbox is damaged: messages may be lost. Set aside");
            } else {
                tracing::warn!(path = %self.path.display(), bytes = lost, "cut off an incomplete last record");
            }
            self.file.set_len(self.len)?;
            self.file.sync_all()?;
        }
        // If a local id was stored twice, the older draft is still among the drafts.
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

    /// Keeps a copy of a damaged file. Returns where it is.
    fn set_aside(&self, bytes: &[u8]) -> io::Result<PathBuf> {
        let aside = beside(&self.path, ".damaged");
        // One from before is replaced by a whole copy, or not at all.
        let new = beside(&aside, ".new");
        let mut copy = options().truncate(true).open(&new)?;
        copy.write_all(bytes)?;
        copy.sync_all()?;
        fs::rename(&new, &aside)?;
        sync_folder(&aside)?;
        Ok(aside)
    }

    fn invalid(&self, what: &str) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, format!("{} {what}", self.path.display()))
    }

    // --- Writing ----------------------------------------------------------------------------------------------------

    /// Writes a whole record. If that fails, the next record overwrites what was written.
    fn append(&mut self, record: &[u8]) -> io::Result<u64> {
        let place = self.len;
        self.file.seek(SeekFrom::Start(place))?;
        if let Err(error) = self.file.write_all(record) {
            // If truncating fails as well, the next reader cuts the remains off, as their checksum is wrong.
            let _ = self.file.set_len(place);
            return Err(error);
        }
        self.len += record.len() as u64;
        Ok(place)
    }

    /// Appends a record that tells what memory already knows. If that fails, as on a full disk, the file has to be written
    /// anew: what it says is no longer true.
    fn note(&mut self, record: &[u8]) -> io::Result<()> {
        self.unsure |= self.append(record).is_err();
        self.compact_if_due()
    }

    /// Appends a record that is on disk when this returns.
    fn append_synced(&mut self, record: &[u8]) -> io::Result<u64> {
        match self.compact_if_due() {
            Err(error) if self.unsure => return Err(error),
            Err(error) => tracing::warn!(%error, "the outbox could not be made smaller"),
            Ok(()) => {}
        }
        let place = self.append(record)?;
        if let Err(error) = self.file.sync_data() {
            // The caller is told that storing failed, so the record must not reappear.
            self.len = place;
            let _ = self.file.set_len(place);
            self.unsure = true;
            return Err(error);
        }
        Ok(place)
    }

    fn keep(&mut self, local_id: &LocalId, place: u64, length: u64) {
        self.forget(local_id);
        self.places.insert(local_id.clone(), place);
        self.kept.insert(place, length);
        self.kept_bytes += length;
    }

    /// Returns where the message was.
    fn forget(&mut self, local_id: &LocalId) -> Option<u64> {
        let place = self.places.remove(local_id)?;
        self.kept_bytes -= self.kept.remove(&place).unwrap_or(0);
        Some(place)
    }

    /// Rewrites the journal when its obsolete records outweigh the live ones, or when it is not known what of it is on disk.
    /// After an error the old journal stays in use.
    fn compact_if_due(&mut self) -> io::Result<()> {
        if !self.unsure && self.len <= 2 * self.kept_bytes + JOURNAL_DEAD_BYTES_MAX {
            return Ok(());
        }
        let beside = beside(&self.path, ".new");
        let (new, len, moved) = self.rewrite(&beside).inspect_err(|_| {
            // On a full disk, half of it would take the room for the next message.
            let _ = fs::remove_file(&beside);
        })?;
        // From here on the new file is the outbox, whatever else fails.
        self.file = new;
        self.len = len;
        for place in self.places.values_mut() {
            if let Some((new, _)) = moved.get(place) {
                *place = *new;
            }
        }
        self.kept = moved.into_values().collect();
        // Until its name is on disk, a loss of power could bring the old one back.
        self.unsure = true;
        sync_folder(&self.path)?;
        self.unsure = false;
        Ok(())
    }

    /// Writes what is live to another file, which takes the journal's place. Returns it with its length, and where each
    /// message is now.
    fn rewrite(&self, beside: &Path) -> io::Result<(File, u64, Moved)> {
        let mut new = options().truncate(true).open(beside)?;
        new.write_all(MAGIC)?;
        let mut len = MAGIC.len() as u64;
        if let Some(owner) = &self.owner {
            let record = record(owner_record(owner));
            new.write_all(&record)?;
            len += record.len() as u64;
        }
        let mut moved = BTreeMap::new();
        for (place, length) in &self.kept {
            (&self.file).seek(SeekFrom::Start(*place))?;
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
        fs::rename(beside, &self.path)?;
        Ok((new, len, moved))
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
                self.append_synced(&record(owner_record(owner)))?;
                self.owner = Some(owner.clone());
            }
        }
        Ok(Backlog { drafts: std::mem::take(&mut self.backlog), cursor: self.cursor })
    }

    /// The message is on disk when this returns.
    fn insert(&mut self, draft: &Draft) -> io::Result<()> {
        if self.kept.len() >= OUTBOX_MESSAGES_MAX {
            return Err(io::Error::other("the outbox file is full"));
        }
        let record = record(draft_record(draft));
        if record.len() > DEVICE_FRAME_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the message is longer than a frame"));
        }
        let place = self.append_synced(&record)?;
        self.keep(&draft.local_id, place, record.len() as u64);
        Ok(())
    }

    /// Not synced to disk: a message that reappears after a crash is sent once more, and the server accepts it once.
    fn remove(&mut self, local_id: &LocalId) -> io::Result<()> {
        if self.forget(local_id).is_none() {
            return Ok(());
        }
        let done = VersionUpdate { message_id_local: local_id.to_string(), ..Default::default() };
        self.note(&record(Payload::VersionUpdate(done)))
    }

    /// Not synced to disk: entries beyond a position lost in a crash are delivered once more.
    fn advance(&mut self, cursor: Sequence) -> io::Result<()> {
        if self.cursor.replace(cursor) == Some(cursor) {
            return Ok(());
        }
        self.note(&record(cursor_record(cursor)))
    }
}

// --- Records --------------------------------------------------------------------------------------------------------

fn record(payload: Payload) -> Vec<u8> {
    let body = envelope(payload).encode_to_vec();
    // A draft's size is bounded far below 4 GiB; the other records are an id or a number.
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let mut record = Vec::with_capacity(HEAD_BYTES + body.len());
    record.extend_from_slice(&length.to_le_bytes());
    record.extend_from_slice(&checksum(&body).to_le_bytes());
    record.extend_from_slice(&body);
    record
}

/// The body of the first record; `None` if it is incomplete or its checksum is wrong.
fn next_record(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let body = rest.get(..usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
    (!body.is_empty() && checksum(body) == u32::from_le_bytes(*sum)).then_some(body)
}

/// Whether there is a whole record somewhere in these bytes.
fn holds_record(bytes: &[u8]) -> bool {
    let is_record = |rest: &[u8]| {
        // Checked first, so that a checksum is computed hardly anywhere else than over a record.
        rest.get(HEAD_BYTES) == Some(&ROUTE_TAG) && next_record(rest).is_some()
    };
    (0..bytes.len()).any(|place| is_record(&bytes[place..]))
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

/// CRC-32 as in zip and Ethernet, computed bit by bit: that takes microseconds per message, and its sync to disk a
/// thousand times longer.
fn checksum(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

// --- Files ----------------------------------------------------------------------------------------------------------

/// Open for reading and writing, created if missing. On Unix only the owner has access, as the file holds message
/// texts.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Locks a file until it is closed; `WouldBlock` if it is locked already. Android has the same call as Linux, but before Rust
/// 1.98 the standard library always fails there.
#[cfg(any(target_os = "android", target_os = "linux"))]
#[allow(unsafe_code)]
fn try_lock(file: &File) -> io::Result<()> {
    // SAFETY: no memory is involved, and the descriptor is open for as long as `file` is borrowed.
    match unsafe { libc::flock(std::os::fd::AsRawFd::as_raw_fd(file), libc::LOCK_EX | libc::LOCK_NB) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Locks a file until it is closed; `WouldBlock` if it is locked already.
#[cfg(not(any(target_os = "android", target_os = "linux")))]
fn try_lock(file: &File) -> io::Result<()> {
    file.try_lock().map_err(io::Error::from)
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Syncs the file's folder, which makes the file's name durable. Only Unix has such a call.
fn sync_folder(path: &Path) -> io::Result<()> {
    if cfg!(unix) {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
