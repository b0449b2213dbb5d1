//! A backup: every row of one consistent view in one file with a checksum, and its restore.
//!
//! ```text
//! "bimip archive 1\n"  time (i64, Unix ms)  number of spaces (u8)  for each: length (u8) and name
//! for each row: space (u8, from 1)  length of key and of value (u32)  key  value
//! 0 (u8)  number of rows (u64)  SHA-256 of everything before
//! ```
//! The 1 is the number of the format ([`FORMAT`]). Numbers are little-endian. The checksum is at the end, so that an archive is
//! written and read in one pass.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::audit::{Audited, audit};
use super::fjall::Fjall;
use super::kv::{Batch, Kv, Order, Slice, Space, View};
use super::marker::{self, Found};
use super::record::FORMAT;
use super::{StoreError, key, make_folder};
use crate::limits::{
    ARCHIVE_COMMIT_BYTES, ARCHIVE_MEMORY_BYTES_MAX, ARCHIVE_ROW_BYTES_MAX, STORE_CACHE_BYTES, STORE_PAGE_ROWS,
};

/// The first bytes of an archive. The number of its format and a line break follow.
const MAGIC: &[u8; 14] = b"bimip archive ";
const DIGEST_BYTES: usize = 32;
/// Digits of the longest `u32`.
const U32_DIGITS: usize = 10;

/// Why a backup could not be made or restored.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The archive cannot be read or written.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The store cannot be read or written, or its rows contradict each other.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file is not an archive, or was truncated or changed.
    #[error("not a whole archive: {0}")]
    Torn(&'static str),
    /// The archive was made by a later version. Holds the number of its format.
    #[error("the archive has format {0}, and this version reads up to {max}: use the version that has made it", max = FORMAT)]
    Newer(u32),
    /// Too much was written while the archive was.
    #[error(
        "{} MiB of memory hold what was written since the backup began: begin it again when less is written, or onto a faster disk",
        ARCHIVE_MEMORY_BYTES_MAX / (1024 * 1024)
    )]
    TooSlow,
    /// The store that was made of the archive holds something else.
    #[error("what was restored into {} has changed meanwhile: does another process use it?", .0.display())]
    Changed(PathBuf),
    /// Another process restores into the same directory.
    #[error("another one restores into {}", .0.display())]
    Busy(PathBuf),
    /// The target directory of a restore already exists.
    #[error("{} is there already: restore into an empty data directory, or move it away", .0.display())]
    NotEmpty(PathBuf),
    /// There is no store to back up.
    #[error("no store in {}", .0.display())]
    NoStore(PathBuf),
}

/// A summary of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Archived {
    /// When the view was taken, Unix milliseconds.
    pub taken_at_ms: i64,
    /// Number of rows.
    pub rows: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// The checksum at its end.
    pub sha256: [u8; DIGEST_BYTES],
}

/// What an archive begins with.
#[derive(Debug)]
struct Head {
    format: u32,
    taken_at_ms: i64,
    /// A row names its space by its place here, from 1.
    spaces: Vec<Space>,
}

/// Writes an archive of the store in `dir` to `out`. No process may have the store open. `now_ms` is Unix milliseconds.
///
/// # Errors
/// [`ArchiveError::NoStore`] if there is no store in `dir`; [`ArchiveError::Store`] if another process has the store open or
/// a row cannot be read; [`ArchiveError::Io`] if `out` fails.
pub fn archive(dir: &Path, now_ms: i64, out: &mut dyn Write) -> Result<Archived, ArchiveError> {
    // The engine would make a new one.
    let found = marker::check(dir).map_err(|why| StoreError::Engine(format!("opening {}: {why}", dir.display())))?;
    if matches!(found, Found::Nothing | Found::Unfinished) {
        return Err(ArchiveError::NoStore(dir.to_owned()));
    }
    let engine = Fjall::open(dir, STORE_CACHE_BYTES)?;
    write(&*engine.view(), now_ms, out)
}

/// Creates the store `dir` from an archive, and audits that its rows fit together. The store is built under another
/// name beside `dir` and renamed at the end, so that `dir` is complete whenever it exists.
///
/// # Errors
/// [`ArchiveError::NotEmpty`] if `dir` exists; [`ArchiveError::Busy`] if another process restores into it, and
/// [`ArchiveError::Changed`] if one has changed what was restored; [`ArchiveError::Torn`] if the archive is incomplete or
/// damaged, and [`ArchiveError::Newer`] if a later version made it; [`ArchiveError::Store`] if its rows contradict each
/// other or the engine fails; [`ArchiveError::Io`] if reading or writing fails. Nothing is left behind, unless the
/// clean-up or the final rename and sync fail.
pub fn restore(from: &mut dyn Read, dir: &Path) -> Result<(Archived, Audited), ArchiveError> {
    if let Some(parent) = parent(dir) {
        make_folder(parent)?;
    }
    let lock = beside(dir, ".restore-lock");
    let claimed = claim(&lock).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => ArchiveError::Busy(dir.to_owned()),
        _ => error.into(),
    })?;
    let restored = restore_alone(from, dir);
    // If it stays, the next restore takes it over.
    let _ = fs::remove_file(&lock);
    drop(claimed);
    restored
}

fn restore_alone(from: &mut dyn Read, dir: &Path) -> Result<(Archived, Audited), ArchiveError> {
    if dir.exists() {
        return Err(ArchiveError::NotEmpty(dir.to_owned()));
    }
    let unfinished = beside(dir, ".restoring");
    remove(&unfinished)?;
    make_folder(&unfinished)?;
    let restored = fill(from, &unfinished);
    if restored.is_err() {
        // The restore's error is the one to report; the next attempt removes the directory, too.
        let _ = remove(&unfinished);
        return restored;
    }
    fs::rename(&unfinished, dir)?;
    if let Some(parent) = parent(dir) {
        File::open(parent)?.sync_all()?;
    }
    restored
}

fn parent(dir: &Path) -> Option<&Path> {
    dir.parent().filter(|parent| !parent.as_os_str().is_empty())
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Creates a file that only this process's user may read, or takes over one that another process has left, and locks it until it
/// is closed.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] if another process has it; else as the system gives them.
pub fn claim(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    let id = |metadata: Metadata| (metadata.dev(), metadata.ino());
    let ours = id(file.metadata()?);
    // The other one may also have finished meanwhile, and removed or renamed it.
    if file.try_lock().is_err() || !fs::metadata(path).is_ok_and(|named| id(named) == ours) {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    Ok(file)
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn fill(from: &mut dyn Read, dir: &Path) -> Result<(Archived, Audited), ArchiveError> {
    let (head, archived) = read(from, &Fjall::open(dir, STORE_CACHE_BYTES)?)?;
    let changed = || ArchiveError::Changed(dir.to_owned());
    // Where the folder is gone, the engine would make an empty store.
    if marker::check(dir) != Ok(Found::Whole) {
        return Err(changed());
    }
    // Opened anew, as the server will open it.
    let engine = Fjall::open(dir, STORE_CACHE_BYTES)?;
    let view = engine.view();
    if write_as(&head, &*view, &mut io::sink(), ARCHIVE_MEMORY_BYTES_MAX)? != archived {
        return Err(changed());
    }
    Ok((archived, audit(&*view)?))
}

/// Writes all rows of a view.
pub(crate) fn write(view: &dyn View, now_ms: i64, out: &mut dyn Write) -> Result<Archived, ArchiveError> {
    let head = Head { format: FORMAT, taken_at_ms: now_ms, spaces: Space::ALL.to_vec() };
    write_as(&head, view, out, ARCHIVE_MEMORY_BYTES_MAX)
}

/// `memory_max`: bytes of rows that may be written meanwhile. The engine frees no memtable that was closed since the view began.
fn write_as(head: &Head, view: &dyn View, out: &mut dyn Write, memory_max: u64) -> Result<Archived, ArchiveError> {
    let mut out = BufWriter::new(Summing { inner: out, sum: Sha256::new(), bytes: 0 });
    out.write_all(MAGIC)?;
    writeln!(out, "{}", head.format)?;
    out.write_all(&head.taken_at_ms.to_le_bytes())?;
    out.write_all(&[head.spaces.len() as u8])?;
    for space in &head.spaces {
        out.write_all(&[space.name().len() as u8])?;
        out.write_all(space.name().as_bytes())?;
    }
    let (mut rows, written_before) = (0u64, view.written());
    for (number, space) in (1u8..).zip(head.spaces.iter().copied()) {
        let mut span = key::all();
        loop {
            if view.written().saturating_sub(written_before) > memory_max {
                return Err(ArchiveError::TooSlow);
            }
            let page = view.range(space, &span, Order::Ascending, STORE_PAGE_ROWS)?;
            for (key, value) in &page {
                // Rows are far shorter than `u32::MAX`: none is longer than a frame.
                let lengths = [key.len(), value.len()].map(|length| u32::try_from(length).unwrap_or(u32::MAX));
                out.write_all(&[number])?;
                out.write_all(&lengths[0].to_le_bytes())?;
                out.write_all(&lengths[1].to_le_bytes())?;
                out.write_all(key)?;
                out.write_all(value)?;
                rows += 1;
            }
            let Some((last, _)) = page.last() else { break };
            span = key::following(span, last);
        }
    }
    out.write_all(&[0])?;
    out.write_all(&rows.to_le_bytes())?;
    let Summing { inner, sum, bytes } = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    let sha256: [u8; DIGEST_BYTES] = sum.finalize().into();
    inner.write_all(&sha256)?;
    inner.flush()?;
    Ok(Archived { taken_at_ms: head.taken_at_ms, rows, bytes: bytes + DIGEST_BYTES as u64, sha256 })
}

/// Reads an archive to its end and checks that it is complete and unchanged.
///
/// # Errors
/// [`ArchiveError::Torn`] if the archive is incomplete or damaged; [`ArchiveError::Newer`] if a later version made it;
/// [`ArchiveError::Io`] if it cannot be read.
pub fn verify(from: &mut dyn Read) -> Result<Archived, ArchiveError> {
    scan(from, |_| Ok(())).map(|(_, archived)| archived)
}

/// Reads all rows into an empty engine. After an error the engine holds some of the rows.
fn read(from: &mut dyn Read, engine: &dyn Kv) -> Result<(Head, Archived), ArchiveError> {
    scan(from, |batch| engine.commit(batch))
}

fn scan(
    from: &mut dyn Read,
    mut take: impl FnMut(Batch) -> Result<(), StoreError>,
) -> Result<(Head, Archived), ArchiveError> {
    let mut from = Summing { inner: from, sum: Sha256::new(), bytes: 0 };
    if &from.array()? != MAGIC {
        return Err(ArchiveError::Torn("it does not begin like one"));
    }
    let format = from.number()?;
    if format > FORMAT {
        return Err(ArchiveError::Newer(format));
    }
    let taken_at_ms = i64::from_le_bytes(from.array()?);
    let mut spaces = Vec::new();
    for _ in 0..from.array::<1>()?[0] {
        let length = from.array::<1>()?[0];
        let name = from.bytes(usize::from(length))?;
        let known = Space::ALL.into_iter().find(|space| space.name().as_bytes() == name);
        spaces.push(known.ok_or(ArchiveError::Torn("it has a space that this version does not know"))?);
    }
    let (mut rows, mut batch, mut taken) = (0u64, Vec::new(), 0);
    loop {
        let number = usize::from(from.array::<1>()?[0]);
        if number == 0 {
            break;
        }
        let space = spaces.get(number - 1).ok_or(ArchiveError::Torn("a row in no space"))?;
        let lengths = [u32::from_le_bytes(from.array()?), u32::from_le_bytes(from.array()?)];
        if lengths.iter().any(|length| *length > ARCHIVE_ROW_BYTES_MAX) {
            return Err(ArchiveError::Torn("a row too long"));
        }
        // The engine takes no others, and would panic.
        if !(1..=u32::from(u16::MAX)).contains(&lengths[0]) {
            return Err(ArchiveError::Torn("a key of an impossible length"));
        }
        let [key, value] = [from.bytes(lengths[0] as usize)?, from.bytes(lengths[1] as usize)?];
        batch.push((*space, Slice::from(key), Some(Slice::from(value))));
        rows += 1;
        if from.bytes - taken >= ARCHIVE_COMMIT_BYTES {
            take(std::mem::take(&mut batch))?;
            taken = from.bytes;
        }
    }
    if u64::from_le_bytes(from.array()?) != rows {
        return Err(ArchiveError::Torn("rows are missing"));
    }
    let Summing { inner, sum, bytes } = from;
    let mut digest = [0; DIGEST_BYTES];
    inner.read_exact(&mut digest).map_err(cut_off)?;
    let sha256: [u8; DIGEST_BYTES] = sum.finalize().into();
    if digest != sha256 {
        return Err(ArchiveError::Torn("its checksum is another"));
    }
    if inner.read(&mut [0])? != 0 {
        return Err(ArchiveError::Torn("it goes on after its end"));
    }
    take(batch)?;
    let archived = Archived { taken_at_ms, rows, bytes: bytes + DIGEST_BYTES as u64, sha256 };
    Ok((Head { format, taken_at_ms, spaces }, archived))
}

fn cut_off(error: io::Error) -> ArchiveError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => ArchiveError::Torn("it is cut off"),
        _ => ArchiveError::Io(error),
    }
}

/// Computes the checksum and the length of the bytes that pass through.
struct Summing<T> {
    inner: T,
    sum: Sha256,
    bytes: u64,
}

impl Write for Summing<&mut dyn Write> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.sum.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl Summing<&mut dyn Read> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], ArchiveError> {
        let mut array = [0; N];
        self.fill(&mut array)?;
        Ok(array)
    }

    /// A number in decimal, up to a line break.
    fn number(&mut self) -> Result<u32, ArchiveError> {
        let torn = || ArchiveError::Torn("it does not begin like one");
        let mut digits = String::new();
        while digits.len() <= U32_DIGITS {
            match char::from(self.array::<1>()?[0]) {
                '\n' => return digits.parse().map_err(|_| torn()),
                digit => digits.push(digit),
            }
        }
        Err(torn())
    }

    fn bytes(&mut self, length: usize) -> Result<Vec<u8>, ArchiveError> {
        let mut bytes = vec![0; length];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, into: &mut [u8]) -> Result<(), ArchiveError> {
        self.inner.read_exact(into).map_err(cut_off)?;
        self.sum.update(&*into);
        self.bytes += into.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
