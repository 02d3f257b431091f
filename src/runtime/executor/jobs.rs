//! One task for each attempt.

use std::rc::Rc;

use tokio::sync::mpsc;

use crate::proto::message::StartOrder;
use crate::runtime::attempt;
use crate::runtime::attempt::checkpoint::Checkpoint;
use crate::runtime::process::Job;

use super::{Event, Workshop};

/// Runs an attempt beside the loop, which is told of its end.
pub(super) fn begin(
    workshop: Rc<Workshop>,
    order: Box<StartOrder>,
    job: Rc<Job>,
    events: mpsc::Sender<Event>,
) {
    tokio::task::spawn_local(async move {
        let attempt = &order.attempt;
        let tell = async |made: Checkpoint| {
            let _ = events.send(Event::Checkpointed(attempt.clone(), made)).await;
        };
        let result = attempt::run(&workshop, &order, &job, &tell).await;
        // The loop is gone only when the process ends.
        let _ = events.send(Event::Ended(order.attempt, result.map(|ran| ran.map(Box::new)))).await;
    });
}
