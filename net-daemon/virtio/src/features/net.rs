//! Feature bits of the network device (virtio 1.2, section 5.1.3).

class! {
    /// Device accepts frames with partial checksums from the driver.
    NET_CSUM CSUM = 0;
    /// Driver accepts frames with partial checksums.
    NET_GUEST_CSUM GUEST_CSUM = 1;
    /// Driver may change its receive offloads at run time, by the control queue.
    NET_CTRL_GUEST_OFFLOADS CTRL_GUEST_OFFLOADS = 2;
    /// `mtu` of the configuration space is valid.
    NET_MTU MTU = 3;
    /// `mac` of the configuration space is valid.
    NET_MAC MAC = 5;
    /// Driver accepts TCP segmentation over IPv4.
    NET_GUEST_TSO4 GUEST_TSO4 = 7;
    /// Driver accepts TCP segmentation over IPv6.
    NET_GUEST_TSO6 GUEST_TSO6 = 8;
    /// Driver accepts TCP segmentation with ECN.
    NET_GUEST_ECN GUEST_ECN = 9;
    /// Driver accepts UDP fragmentation (obsolete).
    NET_GUEST_UFO GUEST_UFO = 10;
    /// Device accepts TCP segmentation over IPv4.
    NET_HOST_TSO4 HOST_TSO4 = 11;
    /// Device accepts TCP segmentation over IPv6.
    NET_HOST_TSO6 HOST_TSO6 = 12;
    /// Device accepts TCP segmentation with ECN.
    NET_HOST_ECN HOST_ECN = 13;
    /// Device accepts UDP fragmentation (obsolete).
    NET_HOST_UFO HOST_UFO = 14;
    /// Driver merges several receive buffers into one frame.
    NET_MRG_RXBUF MRG_RXBUF = 15;
    /// `status` of the configuration space is valid.
    NET_STATUS STATUS = 16;
    /// Device has a control virtqueue.
    NET_CTRL_VQ CTRL_VQ = 17;
    /// Control queue accepts receive-mode commands.
    NET_CTRL_RX CTRL_RX = 18;
    /// Control queue accepts VLAN filter commands.
    NET_CTRL_VLAN CTRL_VLAN = 19;
    /// Driver can send gratuitous frames on request.
    NET_GUEST_ANNOUNCE GUEST_ANNOUNCE = 21;
    /// Several queue pairs, selected by the control queue.
    NET_MQ MQ = 22;
    /// Control queue accepts a MAC address.
    NET_CTRL_MAC_ADDR CTRL_MAC_ADDR = 23;
    /// Driver accepts UDP segmentation over IPv4.
    NET_GUEST_USO4 GUEST_USO4 = 54;
    /// Driver accepts UDP segmentation over IPv6.
    NET_GUEST_USO6 GUEST_USO6 = 55;
    /// Device accepts UDP segmentation.
    NET_HOST_USO HOST_USO = 56;
    /// Device can report flow hashes.
    NET_HASH_REPORT HASH_REPORT = 57;
    /// `hdr_len` of the frame header is exact.
    NET_GUEST_HDRLEN GUEST_HDRLEN = 59;
    /// Device accepts a receive-steering table.
    NET_RSS RSS = 60;
    /// Device reports coalesced segments.
    NET_RSC_EXT RSC_EXT = 61;
    /// The device is one of a failover pair.
    NET_STANDBY STANDBY = 62;
    /// `speed` and `duplex` of the configuration space are valid.
    NET_SPEED_DUPLEX SPEED_DUPLEX = 63;
}
