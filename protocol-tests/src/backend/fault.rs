//! Deliberate faults of the scripted back-end, used one at a time. Each names the checks of
//! [`crate::conform`] that must catch it and that the back-end without fault passes.

/// Declares the faults: variant, name, the checks that catch it, the fault in words.
macro_rules! faults {
    ($($variant:ident, $name:literal, $check:literal, $what:literal;)*) => {
        /// One fault of a back-end.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Fault { $(#[doc = $what] $variant),* }

        impl Fault {
            /// All faults.
            pub const ALL: &[Fault] = &[$(Fault::$variant),*];

            /// Returns the name that selects it.
            pub fn name(self) -> &'static str {
                match self { $(Fault::$variant => $name),* }
            }

            /// Returns the fault in words.
            pub fn what(self) -> &'static str {
                match self { $(Fault::$variant => $what),* }
            }

            /// Returns the checks that catch it, separated by commas.
            pub fn caught_by(self) -> &'static str {
                match self { $(Fault::$variant => $check),* }
            }
        }
    };
}

faults! {
    NoVersion1, "no-version-1", "messages/version-1", "Offers no VERSION_1.";
    FeaturesChange, "features-change", "messages/features-again", "Offers only features acknowledged last.";
    NoReplyFlag, "no-reply-flag", "messages/reply-header", "Replies lack the reply flag.";
    NoAck, "no-ack", "messages/need-reply", "NEED_REPLY is ignored.";
    LateAck, "late-ack", "messages/need-reply-negotiating",
        "The message that negotiates REPLY_ACK is not answered.";
    NegativeAck, "negative-ack", "messages/need-reply", "Success is answered with status 1.";
    ReplyUnasked, "reply-unasked", "messages/no-reply-unasked", "Every request is answered.";
    RepliesTwice, "replies-twice", "messages/one-reply-each", "A reply of its own is followed by a status.";
    DropsCoalesced, "drops-coalesced", "messages/coalesced", "Bytes after a message are discarded.";
    AnyVring, "any-vring",
        "messages/index-num, messages/index-base, messages/index-addr, messages/index-enable, \
         messages/index-kick, messages/index-call, messages/index-err",
        "Unknown vrings are set up.";
    AnySize, "any-size", "messages/size-odd, messages/size-zero, messages/size-65536",
        "Ring sizes that are no power of two are accepted.";
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
    BaseGoesOn, "base-goes-on", "states/base-stops, states/base-stops-pair, migration/base-quiet",
        "GET_VRING_BASE stops nothing.";
    BelievesBase, "believes-base", "states/wrong-base", "A ring starts at the index of SET_VRING_BASE.";
    FirstCall, "first-call", "states/call-replaced", "Only the first call descriptor counts.";
    FirstKick, "first-kick", "states/kick-replaced", "Only the first kick descriptor counts.";
    TransmitLength, "transmit-length", "rings/transmit-length-zero",
        "Transmit chains are returned with length 1.";
    ReceiveLength, "receive-length", "rings/receive-length", "Receive chains are returned one byte too long.";
    ForgetsEarlyEnable, "forgets-early-enable", "orders/qemu, states/kick-before-addr",
        "Enables before SET_FEATURES are lost.";
    EventNoWrap, "event-no-wrap", "rings/event-windows", "used_event is compared as if indices did not wrap.";
    StaleOffloads, "stale-offloads", "rings/headers-not-stale",
        "Frames carry offloads that only an earlier driver acknowledged.";
    LostCall, "lost-call", "rings/called, rings/called-event-idx", "The driver is never called.";
    CallsAlways, "calls-always", "rings/no-interrupt, rings/used-event-not-passed",
        "The driver is called even if it asks for no calls.";
    NoAvailEvent, "no-avail-event", "rings/kicked-again", "avail_event is set too far ahead.";
    DoubleCompletion, "double-completion", "rings/each-chain-once", "Transmit chains are returned twice.";
    IndexEarly, "index-early", "rings/each-chain-once", "The used index is written before the entries.";
    StopsAtWrap, "stops-at-wrap", "rings/wrap, rings/receive-wrap", "A ring stops at 65,535.";
    Truncates, "truncates", "rings/transmit-content", "The last byte of a frame is lost.";
    Repeats, "repeats", "rings/order", "Frames leave twice.";
    Swaps, "swaps", "rings/order", "Frames of a batch leave in reverse order.";
    TwoParts, "two-parts", "rings/shapes, rings/chain-100", "Only the first two parts of a chain are read.";
    NoBuffers, "num-buffers-zero", "rings/num-buffers-one", "num_buffers is 0.";
    OneBuffer, "num-buffers-one", "rings/merged", "num_buffers is 1 even for merged buffers.";
    ChecksumForgotten, "checksum-forgotten", "offloads/checksum",
        "The mark of an incomplete checksum is lost.";
    SegmentSizeLost, "segment-size-lost", "offloads/tso4", "The segment size is lost.";
    EcnLost, "ecn-lost", "offloads/tso4-ecn", "The mark of congestion notification is lost.";
    AllTcp4, "all-tcp4", "offloads/tso6", "Segments of TCP over IPv6 are marked as IPv4.";
    UsoAsUfo, "uso-as-ufo", "offloads/uso", "UDP segmentation is marked as UDP fragmentation.";
    HeadersStop, "headers-stop", "offloads/senseless",
        "An invalid header stops the ring.";
    OnePair, "one-pair", "queues/second-pair", "Echoes of all pairs arrive on the first.";
    DisablesAll, "disables-all", "queues/one-disabled", "Disabling one vring disables all.";
    ShownOneByOne, "shown-one-by-one", "rings/merged", "Merged buffers are published one after another.";
    Unfilled, "unfilled", "rings/merged", "Merged buffers are not filled to their ends.";
    ResetIgnored, "reset-ignored", "messages/reset-device", "RESET_DEVICE is acknowledged and ignored.";
    DiscardsDisabled, "discards-disabled", "states/enable-first",
        "Disabled transmit rings are emptied.";
    PairOnly, "pair-only", "states/enable-first", "The rings of a pair run only while both are enabled.";
    StartsByKick, "starts-by-kick", "states/resumed", "A ring starts only at its first kick.";
    CallsAgain, "calls-again", "rings/event-windows-quiet",
        "The driver is called again one used buffer after used_event.";
    CutsAtBorders, "cuts-at-borders", "memory/across-border",
        "Bytes beyond the border of a region are not read.";
    BordersLost, "borders-lost", "memory/receive-across-border",
        "Bytes beyond the border of a region are not written.";
    RingInOneRegion, "ring-in-one-region", "memory/ring-across-border",
        "A ring that crosses the border of a region is not served.";
    AnyPairs, "any-pairs", "queues/control-mq-range", "Any number of pairs is set.";
    ControlFixed, "control-fixed", "queues/control-mq", "The control queue is vring 2 even with MQ.";
    PairsUnasked, "pairs-unasked", "queues/control-one-pair", "A number of pairs is set without MQ.";
    ControlStops, "control-stops", "queues/control-bad", "An unknown command stops the control queue.";
    ProtocolLate, "protocol-late", "messages/protocol-features-early",
        "Protocol features are refused before SET_FEATURES.";
    NoQueues, "no-queues", "messages/queue-num", "GET_QUEUE_NUM answers 0.";
    NoSlots, "no-slots", "messages/mem-slots", "GET_MAX_MEM_SLOTS answers 0.";
    CallNeeded, "call-needed", "messages/no-fd-bit", "The no-descriptor bit of SET_VRING_CALL is refused.";
    SurplusExits, "surplus-exits", "messages/fd-surplus", "A surplus descriptor ends the back-end.";
    TwentyConnections, "twenty-connections", "messages/reconnect", "Ends after twenty connections.";
    KnowsAll, "knows-all", "messages/unknown-request", "Unknown requests are acknowledged.";
    OneChannel, "one-channel", "messages/backend-channel", "A second channel for its requests is refused.";
    AnyBody, "any-body", "messages/short-bodies, messages/empty-bodies, messages/long-bodies",
        "Bodies of every length are acknowledged.";
    AnswersNoise, "answers-noise", "messages/noise, messages/header-size, messages/header-version",
        "Invalid headers are answered.";
    EndlessConfig, "endless-config", "config/beyond-end", "The configuration space has no end.";
    GroupMac, "group-mac", "config/mac", "The MAC is a group address.";
    UserAsGuest, "user-as-guest", "memory/user-addresses", "Ring addresses are used as guest addresses.";
    FewRegions, "few-regions", "memory/all-slots", "Only eight of the 32 offered memory slots work.";
    NoLargeRegions, "no-large-regions", "memory/huge", "Regions over 4 GiB are refused.";
    OneTable, "one-table", "memory/replaced", "A second memory table is refused.";
    EmptyRegions, "empty-regions", "memory/size-zero", "Empty regions are acknowledged.";
    SurplusFiles, "surplus-files", "memory/fd-surplus", "A table with too many descriptors is accepted.";
    NeedsEnable, "needs-enable", "states/enabled-without-protocol",
        "Rings wait for an enable even without protocol features.";
    BeginsAtZero, "begins-at-zero", "states/base-begins", "Every ring begins at index 0.";
    OnlyKicks, "only-kicks", "orders/cloud-hypervisor",
        "Transmit rings are read only when kicked.";
    NoSmallRings, "no-small-rings", "rings/size-1, rings/size-2",
        "Rings of less than 4 descriptors are refused.";
    RingOf256, "ring-of-256", "rings/size-1024, rings/size-32768, rings/chain-1100",
        "Every ring is treated as having at most 256 descriptors.";
    NoJumbo, "no-jumbo", "rings/jumbo", "Frames over 1518 bytes are dropped.";
    NoIndirect, "no-indirect", "rings/indirect, rings/direct-then-indirect",
        "Indirect tables are used as buffers.";
    HeaderApart, "header-apart", "rings/receive-split-header",
        "A frame begins in the second descriptor of its chain.";
    EmptyGivesUp, "empty-gives-up", "rings/receive-no-buffers", "A receive ring without buffers stops.";
    WritesTransmit, "writes-transmit", "hostile/device-writable", "Transmit chains are written.";
    FrameAborts, "frame-aborts", "hostile/runt, hostile/jumbo", "Invalid frame lengths abort the back-end.";
    RingAborts, "ring-aborts",
        "hostile/loop, hostile/next-beyond, hostile/head-beyond, hostile/index-jump, hostile/header-short, \
         hostile/empty", "An invalid ring aborts the back-end.";
    AddressAborts, "address-aborts", "hostile/ring-nowhere, hostile/pair-nowhere",
        "A ring outside memory aborts the back-end.";
    OneConnection, "one-connection", "messages/second-connection", "Ends with its first connection.";
    Deaf, "deaf", "messages/second-connection", "Stays, but accepts no second connection.";
    Aborts, "aborts", "messages/index-far", "An unknown vring aborts the back-end.";
    Segfaults, "segfaults",
        "hostile/nowhere, hostile/address-wrap, hostile/length-4-gib, hostile/table-odd, \
         hostile/table-nowhere, hostile/table-4-gib, memory/removed",
        "A buffer outside memory ends the back-end by SIGSEGV.";
    LogHalf, "log-half", "migration/log-offered-together", "LOG_SHMFD is offered without LOG_ALL.";
    LogNoReply, "log-no-reply", "migration/log-base-replies", "SET_LOG_BASE is not answered.";
    LogShortReply, "log-short-reply", "migration/log-base-echo", "SET_LOG_BASE is answered without a body.";
    LogRepliesTwice, "log-replies-twice", "migration/log-base-one-reply",
        "SET_LOG_BASE with NEED_REPLY is answered twice.";
    LogReplyFlags, "log-reply-flags", "migration/log-base-reply-flags",
        "The reply to SET_LOG_BASE lacks its flag if protocol features were not asked for.";
    LogTooSmall, "log-too-small", "migration/too-small", "A log too small for the memory is accepted.";
    LogNoFile, "log-no-file", "migration/no-descriptor", "A log without a descriptor is accepted.";
    LogBeyondFile, "log-beyond-file", "migration/log-beyond-file", "A log beyond its file is accepted.";
    LogOffset, "log-offset-ignored", "migration/log-offset", "A log begins at byte 0 of its file.";
    LogNoPayload, "log-no-payload", "migration/payload", "Only the header of a received frame is marked.";
    LogNextPage, "log-next-page", "migration/payload, migration/merged, migration/num-buffers",
        "The page after the written one is marked.";
    LogFirstBuffer, "log-first-buffer", "migration/merged",
        "Only the first buffer of a merged frame is marked.";
    LogNoNumBuffers, "log-no-num-buffers", "migration/num-buffers", "num_buffers is not marked.";
    LogNoElements, "log-no-elements", "migration/used-ring, migration/transmit-used-ring",
        "Used elements are not marked.";
    LogNoIndex, "log-no-index", "migration/used-index", "The used index is not marked.";
    LogNoEvent, "log-no-event", "migration/avail-event", "avail_event is not marked.";
    LogNoTransmit, "log-no-transmit", "migration/transmit-used-ring",
        "The used rings of transmit queues are not marked.";
    LogNoAnswer, "log-no-answer", "migration/control-status", "Answers to commands are not marked.";
    LogAddress, "log-address-ignored", "migration/log-address-elsewhere",
        "A used ring is marked at its own address, not at its log address.";
    LogRingAlways, "log-ring-always", "migration/ring-off",
        "A used ring is marked without VHOST_VRING_F_LOG.";
    LogStaysOn, "log-stays-on", "migration/off-again", "Logging does not stop.";
    LogOnce, "log-once", "migration/on-again", "Logging does not begin again once it has stopped.";
    LogKept, "log-kept", "migration/log-replaced, migration/on-again", "Only the first log counts.";
    LogLateIgnored, "log-late-ignored", "migration/log-late", "A log that comes after LOG_ALL is ignored.";
    LogLost, "log-lost", "migration/new-memory, migration/new-region",
        "A new memory table ends logging.";
    RarpUnsent, "rarp-unsent", "migration/rarp", "SEND_RARP is acknowledged and nothing is sent.";
    GpaZero, "gpa-zero", "migration/gpa-addresses", "Guest address 0 is taken for no address.";
    Exits, "exits", "messages/half-and-gone", "An incomplete message ends the back-end with status 3.";
}

impl Fault {
    /// Ends the process by SIGSEGV, like a wild pointer.
    pub(super) fn segfault() -> ! {
        loop {
            // The first signal may only remove a handler of the runtime.
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::SEGV);
        }
    }

    /// Returns the fault of this name.
    pub fn named(name: &str) -> Option<Fault> {
        Fault::ALL.iter().copied().find(|fault| fault.name() == name)
    }
}
