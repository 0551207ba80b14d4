//! State that is saved from real vCPUs and given to new ones, and state that is damaged.

mod encoding;
mod fit;
mod guest;
mod msrs;
mod platform;
mod round_trip;
mod standing;
