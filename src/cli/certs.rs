//! `bimip certs`: a development authority and a certificate that it issues.

use std::path::PathBuf;

use serde::Serialize;

use super::options::ConfigFile;
use super::{Failure, say};
use crate::auth::dev::{self, Certificates};

/// Make a development authority and a server certificate; what exists stays
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    file: ConfigFile,
    /// Where to
    #[arg(value_name = "DIR", default_value = "certs")]
    folder: PathBuf,
    /// Host name or IP address to be valid for, besides localhost; may be given several times
    #[arg(long = "name", value_name = "HOST", value_delimiter = ',')]
    names: Option<Vec<String>>,
}

#[derive(Serialize)]
struct Flags {
    dev_names: Option<Vec<String>>,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = self.file.load(Flags { dev_names: self.names })?;
        let Certificates { ca, certificate, key } = dev::certificates(&self.folder, &config.dev_names)?;
        say(&format!("{}: what clients trust (--ca)", ca.display()))?;
        say(&format!("{}: the server's certificate (tls.certificate)", certificate.display()))?;
        say(&format!("{}: its private key (tls.key)", key.display()))?;
        Ok(())
    }
}
