//! Two users who only want to talk, and so notice when somebody else's misbehaviour harms them.

use bimip::wire::Lane;

use super::body::text_of;
use super::{Raw, TestServer};

/// Carol writes, bob reads.
pub struct Bystanders {
    /// Pipelined, so that what she says arrives when it is accepted.
    pub carol: Raw,
    /// Also the one to whom others try to send what they should not.
    pub bob: Raw,
    said: usize,
}

impl Bystanders {
    /// Signs both in.
    pub async fn join(server: &TestServer) -> Bystanders {
        let carol = server.session("carol@localhost", "phone").pipelined().open().await;
        let bob = server.sign_in("bob@localhost", "phone").await;
        Bystanders { carol, bob, said: 0 }
    }

    /// Carol and bob are served as if nothing had happened, and since bob was last heard of nothing else has entered his
    /// log.
    pub async fn assert_unharmed(&mut self) {
        let (carol, bob) = (&mut self.carol, &mut self.bob);
        self.said += 1;
        let (local, before) = (format!("bystander-{}", self.said), bob.last_sequence);
        carol.ping().await;
        let update = carol.say("bob@localhost", &local, &local).await;
        assert_eq!(update.version, self.said as i64);
        let message = bob.hear().await;
        assert_eq!((text_of(&message), message.sequence), (local.as_str(), before + 1));
        bob.ping().await;
        carol.expect_nothing_more(Lane::Chat).await;
    }
}
