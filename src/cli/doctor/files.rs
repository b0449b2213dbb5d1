//! Checks the files that a server starts from: certificate, keys, and the data directory with its disk.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::finding::{Finding, Report, of_files, of_folder};
use crate::auth::dev::DevFiles;
use crate::auth::{AuthError, CertificateFacts, ChainFacts, Verifier, lb_key, load_tls};
use crate::cli::limits::{CERTIFICATE_WARN_BEFORE, DISK_SYNC_SLOW, DISK_SYNC_STALLED, DISK_SYNCS, DISK_WARN_BYTES};
use crate::clock::Now;
use crate::config::Config;
use crate::server::control::socket;
use crate::store::Disk;

const CERTIFICATE: &str = "certificate";
const KEYS: &str = "token keys";
const LB_KEY: &str = "balancer key";
const DATA: &str = "data";
const TRACES: &str = "traces";
const DISK: &str = "disk";

/// How a finding counts that keeps no server from starting.
pub(in crate::cli) type Served = fn(Finding) -> Finding;

/// Checks certificate, token keys and the balancer's key as the server would read them. Makes no files, even with
/// `dev`.
pub(in crate::cli) fn credentials(
    config: &Config,
    names: &[String],
    served: Served,
    report: &mut Report,
) -> io::Result<()> {
    let dev = config.dev.then(|| DevFiles::in_data_dir(&config.data_dir));
    let pair = match (&config.tls.certificate, &config.tls.key, &dev) {
        (Some(certificate), Some(key), _) => Some((certificate.clone(), key.clone())),
        (_, _, Some(files)) => Some((files.certificate.clone(), files.key.clone())),
        _ => None,
    };
    report.add(match pair {
        Some((certificate, key)) => {
            let ca = config.client.ca.clone().unwrap_or_else(|| DevFiles::in_data_dir(&config.data_dir).ca);
            let files = [certificate.clone(), key.clone(), ca.clone()];
            let (dev, names) = (config.dev, names.to_vec());
            let look = move || match dev && !certificate.exists() {
                true => vec![Finding::ok(CERTIFICATE, "none yet: the first start with dev makes one")],
                false => match load_tls(&certificate, &key) {
                    Ok((chain, _)) => chain_findings(dev, &chain, &ca, names).into_iter().map(served).collect(),
                    Err(error) => vec![refused(CERTIFICATE, &error)],
                },
            };
            of_files(CERTIFICATE, &files, look).unwrap_or_else(|hangs| vec![hangs])
        }
        None => vec![refused(CERTIFICATE, &AuthError::NoCertificate)],
    })?;

    let (auth, is_dev, dev_key) = (config.auth.clone(), config.dev, dev.map(|files| files.token_public));
    let named = auth.keys.iter().chain(&auth.jwks).chain(&auth.hs256_secret_file).chain(&dev_key).cloned();
    let files: Vec<_> = named.collect();
    let look = move || match Verifier::from_config(&auth, dev_key.filter(|key| key.exists()).as_deref()) {
        Ok(verifier) => Finding::ok(KEYS, format!("{} in use", verifier.keys())),
        Err(AuthError::NoKeys) if is_dev => Finding::ok(KEYS, "none yet: the first start with dev makes one"),
        Err(error) => refused(KEYS, &error),
    };
    report.add([of_files(KEYS, &files, look).unwrap_or_else(|hangs| hangs)])?;

    let Some(file) = config.quic.lb.key_file.clone() else { return Ok(()) };
    let files = [file.clone()];
    let look = move || match lb_key(&file) {
        Ok(_) => Finding::ok(LB_KEY, format!("{} holds one", file.display())),
        Err(error) => refused(LB_KEY, &error),
    };
    report.add([of_files(LB_KEY, &files, look).unwrap_or_else(|hangs| hangs)])
}

fn refused(check: &'static str, error: &AuthError) -> Finding {
    Finding::fail(check, error.to_string(), "the server does not start, or does not reload, until this is right")
}

fn chain_findings(dev: bool, chain: &[CertificateDer<'_>], ca: &Path, mut names: Vec<String>) -> Vec<Finding> {
    let facts = match ChainFacts::read(chain) {
        Ok(facts) => facts,
        Err(fault) => return vec![Finding::fail(CERTIFICATE, fault.to_string(), fault.advice())],
    };
    let mut findings = validity(&facts, Now::system().unix_ms / 1000);
    if ca.exists() {
        names.extend(dev.then(|| "localhost".to_owned()));
        findings.extend(names.iter().map(|name| trusted(chain, ca, name)));
    } else {
        findings.extend(names.iter().map(|name| named(&facts.certificates[0], name)));
    }
    findings
}

/// What is wrong with the chain by itself; if nothing is, how long it is valid, and what it consists of.
fn validity(facts: &ChainFacts, now: i64) -> Vec<Finding> {
    let faults = facts.faults(now);
    if !faults.is_empty() {
        return faults.iter().map(|fault| Finding::fail(CERTIFICATE, fault.to_string(), fault.advice())).collect();
    }
    let (first, left) = (&facts.certificates[0], facts.not_after - now);
    let left_for = format!("{} days left, for {}", left / (24 * 3600), first.names.join(", "));
    let soon = u64::try_from(left).is_ok_and(|left| Duration::from_secs(left) < CERTIFICATE_WARN_BEFORE);
    let lasts = match soon {
        true => Finding::warn(CERTIFICATE, left_for, "renew it; the running server takes it up by itself"),
        false => Finding::ok(CERTIFICATE, left_for),
    };
    let consists_of = match facts.certificates.len() {
        1 if first.issuer != first.subject => {
            format!("alone in its file: clients must know its issuer, {}", first.issuer)
        }
        length => format!("a chain of {length}, in order"),
    };
    vec![lasts, Finding::ok(CERTIFICATE, consists_of)]
}

/// Checks that a client that trusts the authority accepts the chain for this name.
fn trusted(chain: &[CertificateDer<'_>], ca: &Path, name: &str) -> Finding {
    let Some((first, rest)) = chain.split_first() else {
        return Finding::fail(CERTIFICATE, "the chain is empty", "give a PEM file with a certificate");
    };
    let verified = || {
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_file_iter(ca).map_err(|error| error.to_string())? {
            roots.add(root.map_err(|error| error.to_string())?).map_err(|error| error.to_string())?;
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build();
        let verifier = verifier.map_err(|error| error.to_string())?;
        let server = ServerName::try_from(name).map_err(|error| error.to_string())?;
        let verified = verifier.verify_server_cert(first, rest, &server, &[], UnixTime::now());
        verified.map(drop).map_err(|error| error.to_string())
    };
    match verified() {
        Ok(()) => Finding::ok(CERTIFICATE, format!("good for {name}, by {}", ca.display())),
        Err(error) => Finding::fail(
            CERTIFICATE,
            format!("not good for {name}, by {}: {error}", ca.display()),
            "clients refuse it: have it issued for the names that they dial, by an authority that they trust",
        ),
    }
}

/// As `trusted`, when there is no authority to check against.
fn named(facts: &CertificateFacts, name: &str) -> Finding {
    if facts.names.iter().any(|known| covers(known, name)) {
        return Finding::ok(CERTIFICATE, format!("it is for {name}"));
    }
    let found = format!("it is not for {name}");
    Finding::fail(CERTIFICATE, found, "clients refuse it: have it issued for the names that they dial")
}

/// A wildcard matches exactly one label (RFC 6125, 6.4.3).
fn covers(known: &str, name: &str) -> bool {
    match known.strip_prefix("*.") {
        Some(domain) => name.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(domain)),
        None => known.eq_ignore_ascii_case(name),
    }
}

/// Whether the data directory answers at all. If it does not, that is reported, and nothing else should look at it.
pub(in crate::cli) fn answers(config: &Config, report: &mut Report) -> io::Result<bool> {
    let socket = socket(&config.data_dir);
    let looked = of_folder(DATA, "whether it is there", &config.data_dir, move || drop(socket.symlink_metadata()));
    let answers = looked.is_ok();
    report.add(looked.err())?;
    Ok(answers)
}

/// Checks that the data directory can be written, and that only its owner can read it.
pub(in crate::cli) fn data(config: &Config, served: Served) -> Finding {
    let data_dir = config.data_dir.clone();
    let look = move || {
        let folder = nearest(&data_dir);
        match syncs(&folder, 1) {
            Ok(_) if folder == data_dir => access(&folder),
            Ok(_) => Finding::ok(DATA, format!("{} will be made in {}", data_dir.display(), folder.display())),
            Err(error) => unwritable(&folder, &error, served),
        }
    };
    of_folder(DATA, "whether it can be written", &config.data_dir, look).unwrap_or_else(|hangs| hangs)
}

fn unwritable(folder: &Path, error: &io::Error, served: Served) -> Finding {
    let found = format!("{} cannot be written: {error}", folder.display());
    match error.kind() {
        // A server may start, but it takes no messages.
        io::ErrorKind::StorageFull => {
            served(Finding::fail(DATA, found, "the disk is full to the last byte: make room"))
        }
        _ => Finding::fail(DATA, found, "give it to the user that the server runs as, and run this as that user"),
    }
}

/// Checks that the folder for traces can be used, if one is configured.
pub(in crate::cli) fn traces(config: &Config) -> Option<Finding> {
    let folder = config.quic.qlog_dir.clone()?;
    let look = {
        let folder = folder.clone();
        move || traces_in(&folder)
    };
    Some(of_folder(TRACES, "whether it can be written", &folder, look).unwrap_or_else(|hangs| hangs))
}

fn traces_in(folder: &Path) -> Finding {
    let there = nearest(folder);
    let exists = there == *folder;
    let looked = if exists { fs::read_dir(folder).map(drop) } else { Ok(()) };
    match (looked, syncs(&there, 1)) {
        (Err(error), _) => {
            let found = format!("quic.qlog_dir {}: {error}", folder.display());
            Finding::fail(TRACES, found, "the server does not start: give a folder that its user can read")
        }
        (_, Err(error)) if exists => {
            let found = format!("quic.qlog_dir {} cannot be written: {error}", folder.display());
            Finding::warn(TRACES, found, "no connection is traced: give it to the user that the server runs as")
        }
        (_, Err(error)) => {
            let found = format!("quic.qlog_dir {} cannot be made: {error}", folder.display());
            Finding::fail(TRACES, found, "the server does not start: make it for the user that the server runs as")
        }
        _ if exists => Finding::ok(TRACES, format!("{} can be written", folder.display())),
        _ => Finding::ok(TRACES, format!("{} will be made", folder.display())),
    }
}

/// Measures how long the disk takes to sync: each message waits for that.
pub(super) fn disk(config: &Config) -> Option<Finding> {
    let data_dir = config.data_dir.clone();
    let look = move || syncs(&nearest(&data_dir), DISK_SYNCS).ok();
    let mut times = match of_folder(DISK, "how long a sync takes", &config.data_dir, look) {
        Ok(times) => times?,
        Err(hangs) => return Some(hangs),
    };
    times.sort();
    let (median, slowest) = (times[times.len() / 2], times[times.len() - 1]);
    let found = format!("fdatasync takes {median:.1?}, at most {slowest:.1?} of {DISK_SYNCS}");
    let advice = "every acknowledged message waits for it: use a local SSD, and not a network file system";
    Some(match median {
        median if median >= DISK_SYNC_STALLED => Finding::fail(DISK, found, advice),
        median if median >= DISK_SYNC_SLOW => Finding::warn(DISK, found, advice),
        _ => Finding::ok(DISK, found),
    })
}

fn access(folder: &Path) -> Finding {
    let mode = fs::metadata(folder).map(|there| there.permissions().mode() & 0o777).unwrap_or_default();
    let found = format!("{} can be written, mode {mode:o}", folder.display());
    match mode & 0o077 {
        0 => Finding::ok(DATA, found),
        _ => Finding::warn(DATA, found, format!("others may look into it: chmod 700 {}", folder.display())),
    }
}

/// Checks that there is enough free space on the data directory's disk.
pub(in crate::cli) fn space(config: &Config) -> Option<Finding> {
    let data_dir = config.data_dir.clone();
    let look = move || Disk::of(&nearest(&data_dir)).ok();
    match of_folder(DISK, "how much space is free", &config.data_dir, look) {
        Ok(disk) => disk.map(room),
        Err(hangs) => Some(hangs),
    }
}

/// Checks that this is enough free space.
pub(in crate::cli) fn room(disk: Disk) -> Finding {
    let mib = |bytes| bytes / (1024 * 1024);
    let found = format!("{} MiB free", mib(disk.free));
    let advice = format!(
        "below {} MiB the store takes no new messages, and on a full disk it stops until a restart: make room, or shorten \
         the retention",
        mib(disk.reserve())
    );
    match disk.free {
        free if free < disk.reserve() => Finding::fail(DISK, found, advice),
        free if free < DISK_WARN_BYTES => Finding::warn(DISK, found, advice),
        _ => Finding::ok(DISK, found),
    }
}

/// The folder itself if it exists, else its nearest existing ancestor (which may be a file).
fn nearest(folder: &Path) -> PathBuf {
    folder.ancestors().find(|folder| fs::symlink_metadata(folder).is_ok()).unwrap_or(Path::new(".")).to_owned()
}

/// Writes and syncs a few kilobytes `times` times, in a file that is removed afterwards.
fn syncs(folder: &Path, times: usize) -> io::Result<Vec<Duration>> {
    let path = folder.join(format!(".bimip-doctor-{}", std::process::id()));
    let measure = |mut file: File| {
        file.write_all(&[0; 4096])?;
        file.sync_all()?;
        let mut took = Vec::new();
        for number in 0..times {
            let began = Instant::now();
            file.write_all_at(&[number as u8; 4096], (number * 4096) as u64)?;
            file.sync_data()?;
            took.push(began.elapsed());
        }
        Ok(took)
    };
    let measured = File::create_new(&path).and_then(measure);
    let removed = fs::remove_file(&path);
    measured.and_then(|took| removed.map(|()| took))
}

#[cfg(test)]
mod tests {
    use std::convert::identity;

    use super::*;
    use crate::auth::dev;
    use crate::cli::doctor::finding::Grade;

    #[test]
    fn a_certificate_is_graded_by_what_is_left_of_it() {
        let facts = |not_before, not_after| ChainFacts {
            not_before,
            not_after,
            certificates: vec![CertificateFacts {
                not_before,
                not_after,
                names: vec!["chat.example.org".to_owned()],
                subject: String::new(),
                issuer: String::new(),
            }],
        };
        const DAY: i64 = 24 * 3600;
        for (not_before, not_after, grade) in [
            (0, 90 * DAY, Grade::Ok),
            (0, 15 * DAY, Grade::Ok),
            (0, 13 * DAY, Grade::Warn),
            (0, -1, Grade::Fail),
            (1, 90 * DAY, Grade::Fail),
        ] {
            assert_eq!(validity(&facts(not_before, not_after), 0)[0].grade, grade, "{not_before} {not_after}");
        }
        for left in [90, 5] {
            let mut none = facts(0, left * DAY);
            none.certificates[0].names.clear();
            let found = &validity(&none, 0)[0];
            assert_eq!((found.grade, found.found.as_str()), (Grade::Fail, "it is for no name"), "{left} days left");
        }
        assert!(covers("*.example.org", "chat.example.org") && !covers("*.example.org", "a.chat.example.org"));
        assert!(!covers("*.example.org", "example.org") && covers("chat.example.org", "Chat.example.org"));
    }

    #[test]
    fn a_certificate_is_asked_of_the_authority_for_the_names_that_clients_dial() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config { data_dir: folder.path().to_owned(), dev: true, ..Config::default() };
        let findings = |config: &Config, names: &[String]| {
            let mut report = Report::new(true);
            credentials(config, names, identity, &mut report).unwrap();
            report.findings
        };
        let grades = |config: &Config, names: &[&str]| {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            let findings = findings(config, &names);
            assert!(findings.iter().all(|finding| finding.advice.is_some() == (finding.grade != Grade::Ok)));
            findings.iter().map(|finding| finding.grade).max().unwrap()
        };
        assert_eq!(grades(&config, &[]), Grade::Ok, "nothing made yet");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "and nothing is made");
        let files = dev::ensure(folder.path(), &["chat.example.org".to_owned()]).unwrap();
        assert_eq!(grades(&config, &["chat.example.org"]), Grade::Ok);
        assert_eq!(grades(&config, &["other.example.org"]), Grade::Fail);

        let elsewhere = tempfile::tempdir().unwrap();
        let other = dev::certificates(elsewhere.path(), &[]).unwrap();
        (config.tls.certificate, config.tls.key) = (Some(other.certificate), Some(other.key.clone()));
        assert_eq!(grades(&config, &[]), Grade::Fail, "of another authority than clients trust");
        config.tls.certificate = Some(files.certificate);
        assert_eq!(grades(&config, &[]), Grade::Fail, "not its key");
        config.dev = false;
        (config.tls.certificate, config.tls.key) = (None, None);
        let findings = findings(&config, &[]);
        assert!(findings.iter().all(|finding| finding.grade == Grade::Fail), "{findings:?}");
    }

    #[test]
    fn what_cannot_be_written_is_told_with_what_helps() {
        let found = |kind: io::ErrorKind, served| unwritable(Path::new("data"), &kind.into(), served);
        for (kind, advice, at_start) in [
            (io::ErrorKind::StorageFull, "make room", Grade::Warn),
            (io::ErrorKind::PermissionDenied, "give it to the user", Grade::Fail),
        ] {
            let judged = found(kind, identity);
            assert!(judged.grade == Grade::Fail && judged.advice.unwrap().contains(advice), "{kind}");
            assert_eq!(found(kind, Finding::at_most_warn).grade, at_start, "{kind}");
        }
    }

    #[test]
    fn a_folder_that_is_not_there_yet_is_looked_for_where_it_will_be() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config { data_dir: folder.path().join("a/b"), ..Config::default() };
        assert_eq!(data(&config, identity).grade, Grade::Ok);
        assert!(disk(&config).is_some());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert_eq!(nearest(Path::new("no-such-folder-here")), Path::new("."));
        fs::write(folder.path().join("a"), "").unwrap();
        assert_eq!(data(&config, identity).grade, Grade::Fail, "a file is in its way");
        fs::remove_file(folder.path().join("a")).unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(access(folder.path()).grade, Grade::Warn);
    }
}
