//! `bimip contacts`: who may see a user's presence, and who is blocked.

use serde_json::{Value, json};

use super::once::Once;
use super::{Failure, say};
use crate::client::{Admission, Contact};
use crate::wire::{Eid, Lane};

/// The device id of this command, for all its actions.
const DEVICE: &str = "cli-contacts";

/// List, add or remove the users who may see your presence
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    list: Once,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Print all subscribers and blocked users (the default)
    List(List),
    /// Let somebody see your presence, or change the settings of that
    Add(Add),
    /// No longer let somebody see your presence
    Remove(Remove),
}

#[derive(clap::Args)]
struct List {
    #[command(flatten)]
    once: Once,
}

#[derive(clap::Args)]
struct Add {
    /// User to add, local@domain
    eid: Eid,
    /// Your name for them, at most 256 bytes
    #[arg(long, default_value = "", hide_default_value = true)]
    nickname: String,
    /// Your group for them, at most 256 bytes
    #[arg(long, default_value = "", hide_default_value = true)]
    group: String,
    /// Share your presence with them, but never your location
    #[arg(long)]
    no_location: bool,
    #[command(flatten)]
    once: Once,
}

#[derive(clap::Args)]
struct Remove {
    /// User to remove, local@domain
    eid: Eid,
    #[command(flatten)]
    once: Once,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self.action {
            None => list(self.list),
            Some(Action::List(List { once })) => list(once),
            Some(Action::Add(add)) => add.run(),
            Some(Action::Remove(remove)) => remove.run(),
        }
    }
}

fn list(once: Once) -> Result<(), Failure> {
    let json = once.json;
    let contacts = once.ask(DEVICE, &[Lane::Control], async |device| device.subscribers().await)?;
    for contact in &contacts {
        say(&if json { as_json(contact).to_string() } else { as_line(contact) })?;
    }
    if contacts.is_empty() && !json {
        say("nobody")?;
    }
    Ok(())
}

impl Add {
    fn run(self) -> Result<(), Failure> {
        let Add { eid, nickname, group, no_location, once } = self;
        let json = once.json;
        let admission = Admission { nickname, group, share_location: !no_location };
        let updated =
            once.ask(DEVICE, &[Lane::Control], async |device| device.add_subscriber(&eid, admission).await)?;
        let what = if updated { "updated" } else { "added" };
        say(&if json { done(what, &eid) } else { format!("{what} {eid}") })?;
        Ok(())
    }
}

impl Remove {
    fn run(self) -> Result<(), Failure> {
        let Remove { eid, once } = self;
        let json = once.json;
        once.ask(DEVICE, &[Lane::Control], async |device| device.remove_subscriber(&eid).await)?;
        say(&if json { done("removed", &eid) } else { format!("removed {eid}") })?;
        Ok(())
    }
}

fn done(what: &str, eid: &Eid) -> String {
    json!({ "event": what, "eid": eid.as_str() }).to_string()
}

fn as_json(contact: &Contact) -> Value {
    json!({
        "event": "contact",
        "eid": contact.eid.as_str(),
        "nickname": contact.nickname,
        "group": contact.group,
        "subscriber_resource_id": contact.resource_id,
        "share_location": contact.share_location,
        "blocked": contact.blocked,
        "added_at": contact.added_at,
    })
}

/// For example `bob@localhost "Bob" in friends, sees locations`.
fn as_line(contact: &Contact) -> String {
    let mut line = contact.eid.to_string();
    if !contact.nickname.is_empty() {
        line += &format!(" {:?}", contact.nickname);
    }
    if !contact.group.is_empty() {
        line += &format!(" in {:?}", contact.group);
    }
    line + match contact {
        Contact { blocked: true, .. } => ", blocked",
        Contact { share_location: true, .. } => ", sees locations",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_contact_is_one_line_whatever_its_names_hold() {
        let contact = Contact {
            eid: Eid::parse("bob@x").unwrap(),
            nickname: "B\nob".into(),
            group: "friends".into(),
            resource_id: "1".into(),
            share_location: true,
            blocked: false,
            added_at: 5,
        };
        assert_eq!(as_line(&contact), "bob@x \"B\\nob\" in \"friends\", sees locations");
        let blocked = Contact { blocked: true, nickname: String::new(), group: String::new(), ..contact };
        assert_eq!(as_line(&blocked), "bob@x, blocked");
    }
}
