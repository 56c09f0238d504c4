//! What is counted and what it may cost: the budget's account and the process-wide counters. Floor 2: charged by heap and
//! pager, read by everyone above. Never allocates, never blocks.

pub mod account;
pub mod counters;
pub mod events;
pub mod fidelity;
pub mod histogram;
pub mod level;
pub mod status;
