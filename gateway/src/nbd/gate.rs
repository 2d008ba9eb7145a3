//! Keeps a dead connection's writes from landing after those of a later one.
//!
//! A client that loses its connection opens another and sends again what was not answered. Were a write of the first
//! connection done after that, it could undo a newer one. So a new connection to a device asks every earlier one: one
//! whose client is there lets it pass at once (multi-conn), one whose client has hung up first takes in what its socket
//! still has, finishes its writes and ends.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use clonegate_core::{Error, Result};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::device::Device;

/// Told when the barrier is passed; dropping it says so too.
pub(super) type Passed = oneshot::Sender<()>;

/// Connections of one device, each with its number and where to ask it.
type Seats = Vec<(u64, mpsc::UnboundedSender<Passed>)>;

/// The connections of each device, by its address in memory.
#[derive(Debug, Default)]
pub(super) struct Gates {
    seats: Mutex<HashMap<usize, Seats>>,
    next: std::sync::atomic::AtomicU64,
}

/// A connection's place at its device; given up when dropped, which is to be after its last write.
#[derive(Debug)]
pub(super) struct Seat {
    gates: Arc<Gates>,
    device: usize,
    number: u64,
    /// Barriers that newer connections ask for.
    pub(super) barriers: Option<mpsc::UnboundedReceiver<Passed>>,
}

impl Gates {
    /// Waits for the earlier connections of `device`, and takes a seat.
    ///
    /// # Errors
    /// `Conflict` with code `writes-in-flight` when they are not done after `timeout`.
    pub(super) async fn admit(self: &Arc<Self>, device: &Arc<dyn Device>, timeout: Duration) -> Result<Seat> {
        let key = Arc::as_ptr(device).cast::<()>() as usize;
        let (sender, barriers) = mpsc::unbounded_channel();
        let number = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut waits = Vec::new();
        {
            let mut seats = self.seats.lock();
            let earlier = seats.entry(key).or_default();
            for (_, seat) in earlier.iter() {
                let (passed, wait) = oneshot::channel();
                if seat.send(passed).is_ok() {
                    waits.push(wait);
                }
            }
            earlier.push((number, sender));
        }
        let seat = Seat { gates: Arc::clone(self), device: key, number, barriers: Some(barriers) };
        match tokio::time::timeout(timeout, futures::future::join_all(waits)).await {
            Ok(_) => Ok(seat),
            Err(_) => Err(Error::conflict("writes-in-flight", "writes of an earlier connection are not finished")
                .on(device.info().name.clone())
                .hint("connect again in a moment; if it stays so, see whether the store can be reached")),
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.gates.seats.lock();
        if let Some(list) = seats.get_mut(&self.device) {
            list.retain(|(number, _)| *number != self.number);
            if list.is_empty() {
                seats.remove(&self.device);
            }
        }
    }
}
