//! Scripted peers and the lab.

pub mod lab;
