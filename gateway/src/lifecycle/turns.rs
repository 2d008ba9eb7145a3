//! Turns: who changes a thing in several steps waits for the one before him. Others' gateways do not wait; between them, the catalog
//! decides.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use clonegate_core::ids::Name;
use parking_lot::Mutex;
use tokio::sync::{Mutex as Turn, OwnedMutexGuard};

/// Turns by name, or by whatever tells things apart. What nobody holds or waits for takes no memory after the next turn of anything.
#[derive(Debug)]
pub(super) struct Turns<K = Name> {
    of: Mutex<HashMap<K, Arc<Turn<()>>>>,
}

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self { of: Mutex::default() }
    }
}

impl<K: Clone + Eq + Hash> Turns<K> {
    /// Waits until nobody has a turn at this one; it ends when what is returned is dropped.
    pub(super) async fn of(&self, which: &K) -> OwnedMutexGuard<()> {
        let turn = {
            let mut of = self.of.lock();
            of.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(of.entry(which.clone()).or_default())
        };
        turn.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_at_a_time_has_a_turn_at_a_name_and_names_do_not_wait_for_each_other() {
        let turns = Turns::default();
        let (a, b) = (Name::new("a").unwrap(), Name::new("b").unwrap());
        let first = turns.of(&a).await;
        let _other = turns.of(&b).await;
        let mut second = std::pin::pin!(turns.of(&a));
        assert!(futures::poll!(&mut second).is_pending());
        assert_eq!(turns.of.lock().len(), 2);
        drop(first);
        drop(second.await);
        let _last = turns.of(&Name::new("c").unwrap()).await;
        assert_eq!(turns.of.lock().len(), 2, "b and c are held; of a nothing is kept");
    }
}
