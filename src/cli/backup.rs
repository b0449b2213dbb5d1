//! `bimip backup`: archives a whole store in one file, whether or not the server runs.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{self, BufReader, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
#[cfg(target_os = "linux")]
use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
};

use super::control::{Running, ask};
use super::{Failure, owner, say};
use crate::clock::Now;
use crate::config::Config;
use crate::server::control::{Answer, Request};
use crate::store::{self, Archived};

/// Write everything that was acknowledged to one file, whether or not the server runs
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    running: Running,
    /// File to write; it must not exist. Only your user may read it, because it contains the messages in plain text
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Also restore it into a temporary folder beside it, and check that all rows fit together
    #[arg(long)]
    verify: bool,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = self.running.config()?;
        let file = &self.file;
        is_free(file)?;
        // The file gets its final name only when it is complete.
        let partial = beside(file, ".partial");
        let writing = lock(&partial)?;
        // Until then another one may have written it.
        is_free(file).inspect_err(|_| _ = fs::remove_file(&partial))?;
        let made = make(&config, &partial, &writing, self.verify.then(|| beside(file, ".verifying")));
        let archived = match made {
            Ok(archived) => archived,
            Err(failure) => {
                let _ = fs::remove_file(&partial);
                return Err(failure);
            }
        };
        give_name(&partial, file)
            .inspect_err(|_| _ = fs::remove_file(&partial))
            .with_context(|| format!("cannot rename {} to {}", partial.display(), file.display()))?;
        sync_folder(file)?;
        drop(writing);
        let verified = if self.verify { ", restored and found whole" } else { "" };
        say(&format!("{}: {} rows, {} bytes{verified}", file.display(), archived.rows, archived.bytes))?;
        Ok(())
    }
}

fn is_free(file: &Path) -> Result<(), Failure> {
    if file.exists() {
        return Err(anyhow!("{} exists: give another name, or remove it", file.display()).into());
    }
    Ok(())
}

/// Renames a file to a name that is free.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] if it is not; else as the system gives them.
fn give_name(partial: &Path, file: &Path) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    match renameat_with(CWD, partial, CWD, file, RenameFlags::NOREPLACE) {
        // The file system cannot, as NFS.
        Err(Errno::INVAL | Errno::NOSYS) => {}
        renamed => return renamed.map_err(io::Error::from),
    }
    // Another backup does not have the lock.
    fs::rename(partial, file)
}

/// Opens the unfinished file and empties what an interrupted backup has left of it, unless another one writes it now.
fn lock(partial: &Path) -> Result<File, Failure> {
    let cannot = || format!("cannot write {}", partial.display());
    let file = match store::claim(partial) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            return Err(anyhow!("another backup is writing {}", partial.display()).into());
        }
        claimed => claimed.with_context(cannot)?,
    };
    file.set_len(0).with_context(cannot)?;
    // What an interrupted backup has left may have others.
    file.set_permissions(Permissions::from_mode(0o600)).with_context(cannot)?;
    Ok(file)
}

fn make(config: &Config, partial: &Path, writing: &File, verify: Option<PathBuf>) -> Result<Archived, Failure> {
    let cannot = |what: &str| format!("cannot {what} {}", partial.display());
    let mut file = BufWriter::new(writing);
    let served = match ask(config, &Request::Backup)? {
        Some((Answer::Archive, mut archive)) => {
            io::copy(&mut archive, &mut file).with_context(|| cannot("take the backup into"))?;
            true
        }
        Some(_) => return Err(anyhow!("the server answered something else").into()),
        None => {
            let store = config.data_dir.join("store");
            owner::not_as_root_in(&store)?;
            store::archive(&store, Now::system().unix_ms, &mut file)?;
            false
        }
    };
    file.flush().with_context(|| cannot("write"))?;
    file.get_ref().sync_all().with_context(|| cannot("write"))?;
    drop(file);
    // Verify what is on the disk: the server may have been cut off in the middle.
    let read = || File::open(partial).map(BufReader::new).with_context(|| cannot("read"));
    let archived = store::verify(&mut read()?).map_err(|error| match served {
        true => Failure::new(error, "if the server has cut it off, its log says why"),
        false => error.into(),
    })?;
    if let Some(folder) = verify {
        // An interrupted backup may have left it.
        if let Err(error) = fs::remove_dir_all(&folder)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(anyhow!("cannot remove {}: {error}", folder.display()).into());
        }
        let restored = store::restore(&mut read()?, &folder.join("store"));
        let removed = fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()));
        // In this order: a restore that failed may have made no folder.
        restored.with_context(|| format!("cannot restore it into {}", folder.display()))?;
        removed?;
    }
    Ok(archived)
}

fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(file);
    name.push(suffix);
    name.into()
}

fn sync_folder(file: &Path) -> io::Result<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_taken_is_not_given() {
        let folder = tempfile::tempdir().unwrap();
        let (partial, file) = (folder.path().join("backup.partial"), folder.path().join("backup"));
        fs::write(&partial, "second").unwrap();
        fs::write(&file, "first").unwrap();
        if cfg!(target_os = "linux") {
            assert_eq!(give_name(&partial, &file).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
            assert_eq!([&partial, &file].map(|path| fs::read_to_string(path).unwrap()), ["second", "first"]);
        }
        fs::remove_file(&file).unwrap();
        give_name(&partial, &file).unwrap();
        assert!(!partial.exists() && fs::read_to_string(&file).unwrap() == "second");
    }
}
