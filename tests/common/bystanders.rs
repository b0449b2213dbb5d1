//! Two well-behaved users. They show whether another client's misbehaviour affects others.

use bimip::wire::Lane;

use super::body::text_of;
use super::{Raw, TestServer};

/// Carol sends, bob receives.
pub struct Bystanders {
    /// Pipelined, so that her messages are released when they are accepted.
    pub carol: Raw,
    /// Also the recipient of what misbehaving clients send.
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

    /// Asserts that carol's next message reaches bob, that both get their pongs, and that nothing else has entered bob's log
    /// since his last message.
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
