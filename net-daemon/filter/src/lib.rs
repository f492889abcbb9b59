//! `volt_filter`: judges a guest's frames, before they are sent and before they are delivered.
//!
//! | module | contents |
//! |---|---|
//! | [`verdict`] | the filter: one call for each frame |
//! | [`setup`] | its settings |
//! | [`guard`] | who the guest says it is |
//! | [`rules`] | whom it may reach: policies |
//! | [`flows`] | what was allowed already: the flow table |
//! | [`header`] | the virtio-net header |
//! | [`reply`] | answers to refused frames |
//! | [`wire`] | views of headers |
//! | [`summary`] | a frame in a few words |
//! | [`reason`] | why a frame is refused |
//!
//! A caller copies a frame into private memory, asks [`verdict::Filter::judge`], and passes on that copy: see
//! `volt_net::filter`. Nothing here allocates or locks for a frame of a known flow.
#![forbid(unsafe_code)]

pub mod flows;
pub mod guard;
pub mod header;
mod judge;
mod learnt;
mod memory;
mod rate;
pub mod reason;
pub mod reply;
pub mod rules;
pub mod setup;
pub mod summary;
#[cfg(test)]
mod testing;
pub mod verdict;
pub mod wire;

/// The way of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// From the guest to the wire.
    Out,
    /// From the wire to the guest.
    In,
}

impl Way {
    /// Both ways.
    pub const BOTH: [Way; 2] = [Way::Out, Way::In];

    /// Returns the other way.
    #[inline]
    #[must_use]
    pub fn back(self) -> Way {
        match self {
            Way::Out => Way::In,
            Way::In => Way::Out,
        }
    }

    /// Returns the name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Way::Out => "out",
            Way::In => "in",
        }
    }
}
