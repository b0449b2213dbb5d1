//! The development files: created if missing, never overwritten.

use std::collections::BTreeMap;

use super::*;
use crate::auth::{Credentials, Grant, Signer, Verifier, load_tls};
use crate::config::{AuthConfig, Config};
use crate::wire::Eid;

const THEN: Duration = Duration::from_secs(1_800_000_000);

fn at(days: u32) -> SystemTime {
    UNIX_EPOCH + THEN + DAY * days
}

fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            found.insert(path.clone(), fs::read(path).unwrap());
        }
    }
    found
}

#[test]
fn what_is_missing_is_made_and_works_together() {
    let folder = tempfile::tempdir().unwrap();
    let files = ensure(folder.path(), &[]).unwrap();
    let (chain, _) = load_tls(&files.certificate, &files.key).unwrap();
    assert_eq!(chain.len(), 1);

    let signer = Signer::from_pem_file(&files.token_key).unwrap();
    let verifier = Verifier::from_config(&AuthConfig::default(), Some(&files.token_public)).unwrap();
    let grant = Grant { eid: Eid::parse("a@b").unwrap(), device: None, ttl: DAY, scope: None };
    assert_eq!(verifier.verify(&signer.sign(&grant, 1000).unwrap(), 1000).unwrap().eid, grant.eid);

    let names: Vec<_> = contents(folder.path()).into_keys().collect();
    let expected = ["certs/ca.key", "certs/ca.pem", "certs/server.key", "certs/server.pem"];
    let expected = expected.into_iter().chain(["keys/token.key", "keys/token.pub.pem"]);
    assert_eq!(names, expected.map(|name| folder.path().join(name)).collect::<Vec<_>>());
}

#[test]
fn what_exists_is_never_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    ensure(folder.path(), &[]).unwrap();
    let before = contents(folder.path());
    ensure(folder.path(), &[]).unwrap();
    assert_eq!(contents(folder.path()), before);

    // An operator's file that cannot be used stays, too, and is reported.
    let files = DevFiles::in_data_dir(folder.path());
    fs::write(&files.token_key, "mine").unwrap();
    let error = ensure(folder.path(), &[]).unwrap_err().to_string();
    assert!(error.contains("token.key") && error.contains("is not a key of ours"), "{error}");
    assert_eq!(fs::read(&files.token_key).unwrap(), b"mine");
}

#[test]
fn private_keys_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    ensure(folder.path(), &[]).unwrap();
    for key in ["certs/ca.key", "certs/server.key", "keys/token.key"] {
        let mode = fs::metadata(folder.path().join(key)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
}

#[test]
fn a_certificate_is_renewed_before_it_runs_out_and_keeps_its_key_and_authority() {
    let folder = tempfile::tempdir().unwrap();
    let files = certificates_at(folder.path(), &[], at(0)).unwrap();
    let before = contents(folder.path());
    certificates_at(folder.path(), &[], at(790)).unwrap();
    assert_eq!(contents(folder.path()), before);
    certificates_at(folder.path(), &[], at(800)).unwrap();
    let after = contents(folder.path());
    let changed: Vec<_> = after.iter().filter(|(path, content)| before.get(*path) != Some(*content)).collect();
    assert_eq!(changed.len(), 1);
    assert_eq!(changed[0].0, &files.certificate);
    assert!(is_current(&files, &["localhost".to_owned()], THEN + DAY * 800).unwrap());
}

#[test]
fn a_start_that_was_cut_off_is_taken_up() {
    for lost in [&["server.pem"][..], &["server.pem", "server.key"], &["ca.pem"]] {
        let folder = tempfile::tempdir().unwrap();
        let files = certificates_at(folder.path(), &[], at(0)).unwrap();
        lost.iter().for_each(|name| fs::remove_file(folder.path().join(name)).unwrap());
        certificates_at(folder.path(), &[], at(1)).unwrap();
        assert!(is_current(&files, &["127.0.0.1".to_owned()], THEN).unwrap(), "{lost:?}");
        load_tls(&files.certificate, &files.key).unwrap();
    }
}

#[test]
fn what_cannot_be_mended_is_explained() {
    let error_without = |lost: &[&str]| {
        let folder = tempfile::tempdir().unwrap();
        certificates_at(folder.path(), &[], at(0)).unwrap();
        lost.iter().for_each(|name| fs::remove_file(folder.path().join(name)).unwrap());
        certificates_at(folder.path(), &[], at(0)).unwrap_err().to_string()
    };
    assert!(error_without(&["server.key"]).contains("put server.key back"));
    assert!(error_without(&["ca.key", "server.pem"]).contains("put ca.key back"));
    assert!(error_without(&["ca.key", "ca.pem"]).contains("does not come from ca.pem"));

    let folder = tempfile::tempdir().unwrap();
    let files = ensure(folder.path(), &[]).unwrap();
    fs::remove_file(&files.token_key).unwrap();
    assert!(ensure(folder.path(), &[]).unwrap_err().to_string().contains("put token.key back"));
}

#[test]
fn extra_names_are_served_or_explained() {
    let folder = tempfile::tempdir().unwrap();
    let names = ["chat.example.org".to_owned(), "10.1.2.3".to_owned()];
    let files = certificates_at(folder.path(), &names, at(0)).unwrap();
    for name in names.iter().map(String::as_str).chain(OWN_NAMES) {
        assert!(is_current(&files, &[name.to_owned()], THEN).unwrap(), "{name}");
    }
    let error = certificates_at(folder.path(), &["other.example".to_owned()], at(0)).unwrap_err().to_string();
    assert!(error.contains("is not for other.example: remove server.pem"), "{error}");
    let empty = tempfile::tempdir().unwrap();
    let error = certificates_at(empty.path(), &["no name".to_owned()], at(0)).unwrap_err().to_string();
    assert_eq!(error, "\"no name\" is not a host name or an IP address");
    assert_eq!(contents(empty.path()).len(), 0);
}

#[test]
fn unusable_certificates_are_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let files = ensure(folder.path(), &[]).unwrap();
    let other = tempfile::tempdir().unwrap();
    let others = ensure(other.path(), &[]).unwrap();
    let refusal = |certificate: &Path, key: &Path| load_tls(certificate, key).unwrap_err().to_string();
    assert!(refusal(&files.certificate, &others.key).contains("does not belong to the certificate"));
    assert!(refusal(&files.key, &files.key).contains("has none: give a PEM file with -----BEGIN CERTIFICATE-----"));
    assert!(refusal(&files.certificate, &files.ca).contains("has none: give an unencrypted PEM file"));
    assert!(refusal(Path::new("/nowhere/c.pem"), &files.key).starts_with("cannot read certificate /nowhere/c.pem: "));
}

#[test]
fn credentials_take_what_is_configured_and_else_what_development_made() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config { data_dir: folder.path().join("d"), ..Config::default() };
    assert!(matches!(Credentials::from_config(&config), Err(AuthError::NoCertificate)));
    assert!(!config.data_dir.exists());

    config.dev = true;
    let made = Credentials::from_config(&config).unwrap();
    let own = certificates(&folder.path().join("own"), &[]).unwrap();
    (config.tls.certificate, config.tls.key) = (Some(own.certificate), Some(own.key));
    assert_ne!(Credentials::from_config(&config).unwrap().chain, made.chain);

    config.dev = false;
    assert!(matches!(Credentials::from_config(&config), Err(AuthError::NoKeys)));
    config.auth.keys.push(DevFiles::in_data_dir(&config.data_dir).token_public);
    Credentials::from_config(&config).unwrap();
}
