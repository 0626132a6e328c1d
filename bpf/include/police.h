/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A pod speaks for itself only: its addresses, its MAC, its answers to ARP and neighbour discovery (I2, I11). */
#ifndef NAMEGATE_POLICE_H
#define NAMEGATE_POLICE_H

#include "context.h"

static __always_inline int owns(const struct endpoint *e, const struct address *a)
{
	if (is_unspecified(a))
		return 0;
	return same_address(a, &e->addresses[0]) || same_address(a, &e->addresses[1]) ||
	       same_address(a, &e->addresses[2]) || same_address(a, &e->addresses[3]);
}

static __always_inline int same_mac(const __u8 *a, const __u8 *b)
{
	return *(__u32 *)a == *(__u32 *)b && *(__u16 *)(a + 4) == *(__u16 *)(b + 4);
}

/* The one MAC an endpoint may send from: given, or the first that came with one of its addresses. */
static __always_inline int mac_is_own(const struct context *c, const __u8 *mac)
{
	__u32 ifindex = c->ifindex;
	struct learned_mac *known, fresh = {};

	if (c->endpoint.flags & ENDPOINT_HAS_MAC)
		return same_mac(mac, c->endpoint.mac);
	known = bpf_map_lookup_elem(&macs, &ifindex);
	if (known)
		return same_mac(mac, known->mac);
	if (c->probe)
		return 1;
	__builtin_memcpy(fresh.mac, mac, 6);
	bpf_map_update_elem(&macs, &ifindex, &fresh, BPF_NOEXIST);
	known = bpf_map_lookup_elem(&macs, &ifindex);
	return known && same_mac(mac, known->mac);
}

/* The shortest Ethernet frame without its checksum: what is shorter may be filled up to it. */
#define ETHERNET_LEAST 60
/* A neighbour solicitation with its target, the sender's link-layer address and a nonce (RFC 7527). */
#define ND_MOST (ETHERNET + 40 + 24 + 8 + 8)
/* A report of one group (RFC 2710, 3), and one of sixteen without sources (RFC 3810, 5.2); both behind a router
 * alert.
 */
#define MLD_MOST (ETHERNET + 40 + 8 + 24)
#define MLD2_MOST (ETHERNET + 40 + 8 + 8 + 16 * 20)

struct ethernet_arp {
	struct ethhdr ethernet;
	__be16 hardware, protocol;
	__u8 hardware_length, protocol_length;
	__be16 operation;
	__u8 sender_mac[6];
	__u8 sender[4];
	__u8 target_mac[6];
	__u8 target[4];
} __attribute__((packed));

/* A pod may ask for anyone and answer for itself (RFC 826; a probe of RFC 5227 has no sender address). */
SEPARATE enum reason police_arp(PACKET *packet, const struct context *c)
{
	void *data_end = (void *)(long)packet->data_end;
	struct ethernet_arp *arp = (void *)(long)packet->data;
	struct address sender;
	__be32 ip;

	if (!c)
		return REASON_INTERNAL;
	/* What stands behind it would be a message to the whole segment. */
	if (c->frame.octets > ETHERNET_LEAST)
		return REASON_MALFORMED;
	if ((void *)(arp + 1) > data_end || arp->hardware != bpf_htons(ARPHRD_ETHER) ||
	    arp->protocol != bpf_htons(ETH_P_IP) || arp->hardware_length != 6 || arp->protocol_length != 4)
		return REASON_MALFORMED;
	__builtin_memcpy(&ip, arp->sender, 4);
	set_v4(&sender, ip);
	if (ip ? !owns(&c->endpoint, &sender) : arp->operation != bpf_htons(ARPOP_REQUEST))
		return REASON_ARP_SPOOFED;
	if (!same_mac(arp->sender_mac, arp->ethernet.h_source))
		return REASON_ARP_SPOOFED;
	if (ip && !mac_is_own(c, arp->sender_mac))
		return REASON_SPOOFED_MAC;
	return REASON_ARP;
}

/* On a shared segment a link-local address is the pod's only when it is made of the pod's MAC (RFC 4291, appendix A):
 * otherwise a pod could answer for the gateway.
 */
static __always_inline int link_local_is_own(const struct context *c, const struct address *a, const __u8 *mac)
{
	if (!is_link_local(a))
		return 0;
	if (!(c->endpoint.flags & ENDPOINT_BRIDGED))
		return 1;
	return a->octets[8] == (mac[0] ^ 2) && a->octets[9] == mac[1] && a->octets[10] == mac[2] &&
	       a->octets[11] == 0xff && a->octets[12] == 0xfe && a->octets[13] == mac[3] && a->octets[14] == mac[4] &&
	       a->octets[15] == mac[5];
}

/* Neighbour discovery stays on its link. What the node would forward carries anything to anyone, so a unicast
 * destination is the node, or on a shared segment another peer.
 */
static __always_inline int is_on_link(const struct context *c, const struct address *a)
{
	__u32 *peer;

	if (a->octets[0] == 0xff)
		return (a->octets[1] & 0xf) == 2; /* link-local scope (RFC 4291, 2.7) */
	if (is_link_local(a))
		return 1;
	peer = bpf_map_lookup_elem(&peers, a);
	return peer && (*peer == PEER_HOST || (*peer >= PEER_FIRST && c->endpoint.flags & ENDPOINT_BRIDGED));
}

/* Neighbour discovery of a pod (RFC 4861): it solicits, and advertises itself; it is no router. */
SEPARATE enum reason police_nd(PACKET *packet, const struct context *c)
{
	void *data_end = (void *)(long)packet->data_end;
	struct ethhdr *ethernet = (void *)(long)packet->data;
	const struct frame *f;
	enum reason here;
	struct address target;
	__u8 *at;
	__u8 mac[6];

	if (!c)
		return REASON_INTERNAL;
	f = &c->frame;
	here = is_on_link(c, &f->destination) ? REASON_ND : REASON_PROTOCOL;
	if ((void *)(ethernet + 1) > data_end)
		return REASON_MALFORMED;
	__builtin_memcpy(mac, ethernet->h_source, 6);
	if (!owns(&c->endpoint, &f->source) && !link_local_is_own(c, &f->source, mac) && !is_unspecified(&f->source))
		return REASON_SPOOFED_ADDRESS;
	if (owns(&c->endpoint, &f->source) && !mac_is_own(c, mac))
		return REASON_SPOOFED_MAC;
	if (f->icmp_type == MLD_REPORT || f->icmp_type == MLD_DONE || f->icmp_type == MLD2_REPORT) {
		if (f->octets > (f->icmp_type == MLD2_REPORT ? MLD2_MOST : MLD_MOST)) /* as below */
			return REASON_ND_SPOOFED;
		return f->hop_limit == 1 && is_multicast(f) ? REASON_ND : REASON_ND_SPOOFED; /* never forwarded */
	}
	if (f->octets > ND_MOST) /* options that these messages don't have: a message to the whole segment */
		return REASON_ND_SPOOFED;
	if (f->hop_limit != 255 || f->l4_offset != ETHERNET + sizeof(struct ipv6hdr) || f->icmp_code)
		return REASON_ND_SPOOFED;
	if (f->icmp_type == ND_ROUTER_SOLICIT)
		return here;
	if (f->icmp_type != ND_NEIGHBOUR_SOLICIT && f->icmp_type != ND_NEIGHBOUR_ADVERT)
		return REASON_ND_SPOOFED;
	at = (void *)(long)packet->data + ETHERNET + sizeof(struct ipv6hdr) + 8;
	if ((void *)(at + 16) > data_end)
		return REASON_MALFORMED;
	__builtin_memcpy(target.octets, at, 16);
	if (f->icmp_type == ND_NEIGHBOUR_ADVERT && !owns(&c->endpoint, &target) && !link_local_is_own(c, &target, mac))
		return REASON_ND_SPOOFED;
	/* The link-layer address option, the only one that these two carry. */
	if ((void *)(at + 24) <= data_end && at[16] <= 2 && !same_mac(at + 18, mac))
		return REASON_ND_SPOOFED;
	return here;
}

/* From the pod: the source must be its own. To the pod: the destination must be. */
static __always_inline enum reason police_addresses(PACKET *packet, const struct context *c)
{
	struct ethhdr *ethernet = (void *)(long)packet->data;
	__u8 mac[6];

	if (c->direction == FLOW_INGRESS) {
		if (is_multicast(&c->frame) || owns(&c->endpoint, &c->frame.destination))
			return REASON_FLOW;
		return REASON_OTHER_DESTINATION;
	}
	if (!owns(&c->endpoint, &c->frame.source))
		return REASON_SPOOFED_ADDRESS;
	if ((void *)(ethernet + 1) > (void *)(long)packet->data_end)
		return REASON_MALFORMED;
	__builtin_memcpy(mac, ethernet->h_source, 6);
	return mac_is_own(c, mac) ? REASON_FLOW : REASON_SPOOFED_MAC;
}

#endif
