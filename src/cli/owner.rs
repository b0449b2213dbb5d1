//! Checks who owns a store's folder: the server's user cannot use files that root makes in it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::anyhow;

use super::Failure;

/// Refuses to run as root in a folder of another user. Opening a store may write to it (after a crash, to repair the
/// journal), and the owner's server could not start any more. A folder that does not exist is accepted.
pub(super) fn not_as_root_in(folder: &Path) -> Result<(), Failure> {
    let Ok(there) = fs::metadata(folder) else { return Ok(()) };
    let user = rustix::process::geteuid().as_raw();
    if !harms(user, there.uid()) {
        return Ok(());
    }
    let owner = name(&fs::read_to_string("/etc/passwd").unwrap_or_default(), there.uid());
    Err(Failure::new(
        anyhow!("{} is of user {owner}, whose server could not use what root leaves there", folder.display()),
        format!("sudo -u '{owner}' bimip …, with a FILE that this user may use"),
    ))
}

fn harms(user: u32, owner: u32) -> bool {
    user == 0 && owner != 0
}

/// The user's name, or `#` and the number, as sudo accepts it.
fn name(passwd: &str, owner: u32) -> String {
    let known = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(owner)).then(|| name.to_owned())
    });
    known.unwrap_or_else(|| format!("#{owner}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_alone_is_kept_from_what_is_of_others() {
        assert!(harms(0, 998));
        assert!(
            !harms(0, 0) && !harms(998, 998) && !harms(997, 998),
            "who has no right there is told so by the system"
        );
        let passwd = "root:x:0:0:root:/root:/bin/bash\nbroken\nbimip:x:998:997::/var/lib/bimip:/usr/sbin/nologin\n";
        assert_eq!((name(passwd, 998).as_str(), name(passwd, 997).as_str()), ("bimip", "#997"));
    }
}
