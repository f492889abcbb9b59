//! Scripted peers and the lab.
