//! State that is saved from real vCPUs and given to new ones, and state that is damaged.

mod guest;
mod platform;
mod round_trip;
mod standing;
