//! Deliberate faults of the scripted back-end, one at a time, each with the checks of [`crate::conform`] that
//! must catch it and that the back-end without fault passes.

/// Declares the faults: variant, name, the checks that catch it, what is wrong.
macro_rules! faults {
    ($($variant:ident, $name:literal, $check:literal, $what:literal;)*) => {
        /// One thing that a back-end does wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Fault { $(#[doc = $what] $variant),* }

        impl Fault {
            /// All of them.
            pub const ALL: &[Fault] = &[$(Fault::$variant),*];

            /// What it is selected by.
            pub fn name(self) -> &'static str {
                match self { $(Fault::$variant => $name),* }
            }

            /// What is wrong.
            pub fn what(self) -> &'static str {
                match self { $(Fault::$variant => $what),* }
            }

            /// The checks that catch it, by commas.
            pub fn caught_by(self) -> &'static str {
                match self { $(Fault::$variant => $check),* }
            }
        }
    };
}

faults! {
    NoVersion1, "no-version-1", "messages/version-1", "Offers no VERSION_1.";
    FeaturesChange, "features-change", "messages/features-again", "Offers only what was acknowledged last.";
    NoReplyFlag, "no-reply-flag", "messages/reply-header", "Replies lack the reply flag.";
    NoAck, "no-ack", "messages/need-reply", "NEED_REPLY is ignored.";
    LateAck, "late-ack", "messages/need-reply-negotiating",
        "The message that negotiates REPLY_ACK is not answered.";
    NegativeAck, "negative-ack", "messages/need-reply", "Success is answered by status 1.";
    ReplyUnasked, "reply-unasked", "messages/no-reply-unasked", "Every request is answered.";
    RepliesTwice, "replies-twice", "messages/one-reply-each", "A reply of its own is followed by a status.";
    DropsCoalesced, "drops-coalesced", "messages/coalesced", "Bytes behind a message are thrown away.";
    AnyVring, "any-vring",
        "messages/index-num, messages/index-base, messages/index-addr, messages/index-enable, \
         messages/index-kick, messages/index-call, messages/index-err",
        "Vrings that are not there are set up.";
    AnySize, "any-size", "messages/size-odd, messages/size-zero, messages/size-65536",
        "Ring sizes that are no power of two are taken.";
    ConfigFromZero, "config-from-zero", "config/pieces", "The offset of GET_CONFIG is ignored.";
    OffsetIgnored, "offset-ignored", "memory/offset", "Regions begin at byte 0 of their files.";
    FirstRegion, "first-region", "memory/eight-regions", "Only the first region is mapped.";
    AddIgnored, "add-ignored", "memory/add-remove", "ADD_MEM_REG is acknowledged and ignored.";
    EnablesEarly, "enables-early", "states/enable-first, states/disabled-at-first, states/enable-first-pair",
        "Rings run before their first enable.";
    NeverDisables, "never-disables",
        "states/disabled-receive, states/disabled-transmit, states/disabled-pair", "ENABLE 0 is ignored.";
    StaleFeatures, "stale-features", "states/features-again", "Only the first SET_FEATURES counts.";
    BaseZero, "base-zero", "states/base-answered", "GET_VRING_BASE answers 0.";
    BaseOffByOne, "base-off-by-one", "states/base-answered", "GET_VRING_BASE answers one too many.";
    BaseGoesOn, "base-goes-on", "states/base-stops, states/base-stops-pair", "GET_VRING_BASE stops nothing.";
    BelievesBase, "believes-base", "states/wrong-base", "A ring begins where SET_VRING_BASE says.";
    FirstCall, "first-call", "states/call-replaced", "Only the first call descriptor counts.";
    FirstKick, "first-kick", "states/kick-replaced", "Only the first kick descriptor counts.";
    TransmitLength, "transmit-length", "rings/transmit-length-zero",
        "Transmit chains come back with length 1.";
    ReceiveLength, "receive-length", "rings/receive-length", "Receive chains come back one byte too long.";
    ForgetsEarlyEnable, "forgets-early-enable", "orders/qemu, states/kick-before-addr",
        "Enables before SET_FEATURES are forgotten.";
    EventNoWrap, "event-no-wrap", "rings/event-windows", "used_event is compared as if indices did not wrap.";
    StaleOffloads, "stale-offloads", "rings/headers-not-stale",
        "Frames carry marks that only an earlier driver understood.";
    LostCall, "lost-call", "rings/called, rings/called-event-idx", "The driver is never called.";
    CallsAlways, "calls-always", "rings/no-interrupt, rings/used-event-not-passed",
        "The driver is called whatever it says.";
    NoAvailEvent, "no-avail-event", "rings/kicked-again", "avail_event is set too far ahead.";
    DoubleCompletion, "double-completion", "rings/each-chain-once", "Transmit chains come back twice.";
    IndexEarly, "index-early", "rings/each-chain-once", "The used index is shown before the entries.";
    StopsAtWrap, "stops-at-wrap", "rings/wrap, rings/receive-wrap", "A ring ends at 65,535.";
    Truncates, "truncates", "rings/transmit-content", "The last byte of a frame is lost.";
    Repeats, "repeats", "rings/order", "Frames leave twice.";
    Swaps, "swaps", "rings/order", "Frames of a batch leave in the opposite order.";
    TwoParts, "two-parts", "rings/shapes, rings/chain-100", "Only the first two parts of a chain are read.";
    NoBuffers, "num-buffers-zero", "rings/num-buffers-one", "num_buffers is 0.";
    OneBuffer, "num-buffers-one", "rings/merged", "num_buffers is 1 for merged buffers too.";
    ChecksumForgotten, "checksum-forgotten", "offloads/checksum",
        "The mark of a checksum that is left to do is lost.";
    SegmentSizeLost, "segment-size-lost", "offloads/tso4", "The size of segments is lost.";
    EcnLost, "ecn-lost", "offloads/tso4-ecn", "The mark of congestion notification is lost.";
    AllTcp4, "all-tcp4", "offloads/tso6", "Segments of TCP over IPv6 are called those of IPv4.";
    UsoAsUfo, "uso-as-ufo", "offloads/uso", "UDP segmentation is called UDP fragmentation.";
    HeadersStop, "headers-stop", "offloads/senseless",
        "A header that makes no sense ends the work on the ring.";
    OnePair, "one-pair", "queues/second-pair", "Echoes of all pairs come on the first.";
    DisablesAll, "disables-all", "queues/one-disabled", "Disabling one vring disables all.";
    ShownOneByOne, "shown-one-by-one", "rings/merged", "Merged buffers are shown one after another.";
    Unfilled, "unfilled", "rings/merged", "Merged buffers are not filled to their ends.";
    ResetIgnored, "reset-ignored", "messages/reset-device", "RESET_DEVICE is acknowledged and ignored.";
    DiscardsDisabled, "discards-disabled", "states/enable-first",
        "Transmit rings that are disabled are emptied.";
    PairOnly, "pair-only", "states/enable-first", "The rings of a pair run only while both are enabled.";
    StartsByKick, "starts-by-kick", "states/resumed", "A ring starts at its first kick only.";
    CallsAgain, "calls-again", "rings/event-windows-quiet",
        "The driver is called again one used buffer after used_event.";
    CutsAtBorders, "cuts-at-borders", "memory/across-border",
        "What lies behind the border of a region is not read.";
    BordersLost, "borders-lost", "memory/receive-across-border",
        "What lies behind the border of a region is not written.";
    RingInOneRegion, "ring-in-one-region", "memory/ring-across-border",
        "A ring that crosses the border of a region is not served.";
    AnyPairs, "any-pairs", "queues/control-mq-range", "Any number of pairs is set.";
    ControlFixed, "control-fixed", "queues/control-mq", "The control queue is vring 2 with MQ too.";
    PairsUnasked, "pairs-unasked", "queues/control-one-pair", "A number of pairs is set without MQ.";
    ControlStops, "control-stops", "queues/control-bad", "A command that is unknown ends the control queue.";
    ProtocolLate, "protocol-late", "messages/protocol-features-early",
        "Protocol features are refused before SET_FEATURES.";
    NoQueues, "no-queues", "messages/queue-num", "GET_QUEUE_NUM answers 0.";
    NoSlots, "no-slots", "messages/mem-slots", "GET_MAX_MEM_SLOTS answers 0.";
    CallNeeded, "call-needed", "messages/no-fd-bit", "The no-descriptor bit of SET_VRING_CALL is refused.";
    SurplusExits, "surplus-exits", "messages/fd-surplus", "A descriptor that belongs to no request ends it.";
    TwentyConnections, "twenty-connections", "messages/reconnect", "It ends after twenty connections.";
    KnowsAll, "knows-all", "messages/unknown-request", "Requests that it does not know are acknowledged.";
    OneChannel, "one-channel", "messages/backend-channel", "A second channel for its requests is refused.";
    AnyBody, "any-body", "messages/short-bodies, messages/empty-bodies, messages/long-bodies",
        "Bodies of every length are acknowledged.";
    AnswersNoise, "answers-noise", "messages/noise, messages/header-size, messages/header-version",
        "Headers that make no sense are answered.";
    EndlessConfig, "endless-config", "config/beyond-end", "The configuration has no end.";
    GroupMac, "group-mac", "config/mac", "The MAC is that of a group.";
    UserAsGuest, "user-as-guest", "memory/user-addresses", "Ring addresses are taken for guest addresses.";
    FewRegions, "few-regions", "memory/all-slots", "Only eight regions are taken, and 32 promised.";
    NoLargeRegions, "no-large-regions", "memory/huge", "Regions over 4 GiB are refused.";
    OneTable, "one-table", "memory/replaced", "A second memory table is refused.";
    EmptyRegions, "empty-regions", "memory/size-zero", "Regions of no bytes are acknowledged.";
    SurplusFiles, "surplus-files", "memory/fd-surplus", "A memory table with too many descriptors is taken.";
    NeedsEnable, "needs-enable", "states/enabled-without-protocol",
        "Rings wait for an enable without protocol features too.";
    BeginsAtZero, "begins-at-zero", "states/base-begins", "Every ring begins at index 0.";
    OnlyKicks, "only-kicks", "orders/cloud-hypervisor",
        "Transmit rings are looked at when they are kicked, and never else.";
    NoSmallRings, "no-small-rings", "rings/size-1, rings/size-2",
        "Rings of less than 4 descriptors are refused.";
    RingOf256, "ring-of-256", "rings/size-1024, rings/size-32768, rings/chain-1100",
        "Every ring is taken to have 256 descriptors at most.";
    NoJumbo, "no-jumbo", "rings/jumbo", "Frames over 1518 bytes are dropped.";
    NoIndirect, "no-indirect", "rings/indirect, rings/direct-then-indirect",
        "Indirect tables are taken for buffers.";
    HeaderApart, "header-apart", "rings/receive-split-header",
        "A frame begins in the second descriptor of its chain.";
    EmptyGivesUp, "empty-gives-up", "rings/receive-no-buffers", "A receive ring without buffers is given up.";
    WritesTransmit, "writes-transmit", "hostile/device-writable", "Transmit chains are written to.";
    FrameAborts, "frame-aborts", "hostile/runt, hostile/jumbo", "Frames shorter or longer than any abort it.";
    RingAborts, "ring-aborts",
        "hostile/loop, hostile/next-beyond, hostile/head-beyond, hostile/index-jump, hostile/header-short, \
         hostile/empty", "A ring that makes no sense aborts it.";
    AddressAborts, "address-aborts", "hostile/ring-nowhere, hostile/pair-nowhere",
        "A ring outside memory aborts it.";
    OneConnection, "one-connection", "messages/second-connection", "It ends with its first connection.";
    Deaf, "deaf", "messages/second-connection", "It stays, and takes no second connection.";
    Aborts, "aborts", "messages/index-far", "A vring that is not there aborts it.";
    Segfaults, "segfaults",
        "hostile/nowhere, hostile/address-wrap, hostile/length-4-gib, hostile/table-odd, \
         hostile/table-nowhere, hostile/table-4-gib, memory/removed",
        "A buffer outside memory ends it by SIGSEGV.";
    Exits, "exits", "messages/half-and-gone", "A message that is cut short ends it with status 3.";
}

impl Fault {
    /// Ends the process by SIGSEGV, as a wild pointer does.
    pub(super) fn segfault() -> ! {
        loop {
            // The first one may only take away a handler of the runtime's.
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::SEGV);
        }
    }

    /// The fault of this name.
    pub fn named(name: &str) -> Option<Fault> {
        Fault::ALL.iter().copied().find(|fault| fault.name() == name)
    }
}
