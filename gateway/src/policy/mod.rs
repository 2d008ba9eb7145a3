//! Asks the policy plugins for the control layer.
