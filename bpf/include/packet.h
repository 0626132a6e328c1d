/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a packet is to a hook: a socket buffer to TC, a receive buffer to XDP. An object for XDP defines EARLY before it
 * includes anything.
 */
#ifndef NAMEGATE_PACKET_H
#define NAMEGATE_PACKET_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#ifdef EARLY
#define PACKET struct xdp_md

static __always_inline __u32 octets_of(PACKET *packet)
{
	return bpf_xdp_get_buff_len(packet);
}

static __always_inline __u32 interface_of(PACKET *packet)
{
	return packet->ingress_ifindex;
}

/* XDP sees tags in the bytes, but for one that the sender's kernel keeps beside them: that TC sees. */
static __always_inline int has_tag_aside(PACKET *packet)
{
	(void)packet;
	return 0;
}

static __always_inline int is_segmented_later(PACKET *packet)
{
	(void)packet;
	return 0;
}

static __always_inline long load(PACKET *packet, __u32 offset, void *to, __u32 octets)
{
	return bpf_xdp_load_bytes(packet, offset, to, octets);
}
#else
#define PACKET struct __sk_buff

static __always_inline __u32 octets_of(PACKET *packet)
{
	return packet->len;
}

static __always_inline __u32 interface_of(PACKET *packet)
{
	return packet->ifindex;
}

/* The kernel has taken a real frame's outer tag out of the bytes. */
static __always_inline int has_tag_aside(PACKET *packet)
{
	return packet->vlan_present;
}

static __always_inline int is_segmented_later(PACKET *packet)
{
	return packet->gso_size != 0;
}

static __always_inline long load(PACKET *packet, __u32 offset, void *to, __u32 octets)
{
	return bpf_skb_load_bytes(packet, offset, to, octets);
}
#endif

#endif
