//! Whom the control layer asks where a clone goes, when a base is full and whether a delta is discarded.
//!
//! Answers are wishes: lifecycle checks each against the invariants before it does anything.

use std::fmt;

use clonegate_core::advice::{
    Inventory, PlacementRequest, PlacementVerdict, ResetRequest, ResetVerdict, RolloverRequest, RolloverVerdict,
    builtin,
};
use futures::future::BoxFuture;

/// An answer, and who gave it.
#[derive(Debug, Clone)]
pub struct Advice<V> {
    /// The answer; never "no opinion".
    pub verdict: V,
    /// The policy that gave it, `built-in` when none had an opinion.
    pub by: String,
    /// The id of the stored decision, empty when it is not kept.
    pub decision: String,
}

/// Asks the policies, in order, and at last the built-in rules. Never fails: a policy that cannot answer is passed over.
pub trait Advisor: Send + Sync + fmt::Debug + 'static {
    /// Where does this clone go?
    fn place<'a>(
        &'a self,
        request: &'a PlacementRequest,
        inventory: &'a Inventory,
    ) -> BoxFuture<'a, Advice<PlacementVerdict>>;

    /// Does this base need a successor?
    fn roll_over<'a>(
        &'a self,
        request: &'a RolloverRequest,
        inventory: &'a Inventory,
    ) -> BoxFuture<'a, Advice<RolloverVerdict>>;

    /// Is this delta discarded?
    fn reset<'a>(&'a self, request: &'a ResetRequest) -> BoxFuture<'a, Advice<ResetVerdict>>;
}

/// Asks nobody: the rules of [`clonegate_core::advice::builtin`] alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct BuiltIn;

fn built_in<V: Send + 'static>(verdict: V) -> BoxFuture<'static, Advice<V>> {
    Box::pin(std::future::ready(Advice { verdict, by: "built-in".to_owned(), decision: String::new() }))
}

impl Advisor for BuiltIn {
    fn place<'a>(
        &'a self,
        request: &'a PlacementRequest,
        inventory: &'a Inventory,
    ) -> BoxFuture<'a, Advice<PlacementVerdict>> {
        built_in(builtin::place(request, inventory))
    }

    fn roll_over<'a>(
        &'a self,
        request: &'a RolloverRequest,
        _inventory: &'a Inventory,
    ) -> BoxFuture<'a, Advice<RolloverVerdict>> {
        built_in(builtin::roll_over(request))
    }

    fn reset<'a>(&'a self, request: &'a ResetRequest) -> BoxFuture<'a, Advice<ResetVerdict>> {
        built_in(builtin::reset(request))
    }
}
