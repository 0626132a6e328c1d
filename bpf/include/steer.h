/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* DNS steering: stateless one-to-one rewriting, resolver i <-> local address i of the proxy. */
#ifndef NAMEGATE_STEER_H
#define NAMEGATE_STEER_H

#include "fragments.h"

/* Puts `to` in place of one address and port, and mends the checksums. L4 checksums may be partial: the helpers know.
 */
static __always_inline int rewrite(struct __sk_buff *skb, const struct frame *f, const struct address *old_address,
				   __be16 old_port, const struct steer *to, int destination)
{
	int udp = f->protocol == IPPROTO_UDP;
	__u32 sum = f->l4_offset + (udp ? 6 : 16);
	__u64 mangled = udp ? BPF_F_MARK_MANGLED_0 : 0;
	__be16 port = to->port;

	if (bpf_l4_csum_replace(skb, sum, old_port, port, 2 | mangled) ||
	    bpf_skb_store_bytes(skb, f->l4_offset + (destination ? 2 : 0), &port, 2, 0))
		return -1;
	if (f->family == 4) {
		__be32 from, into;

		__builtin_memcpy(&from, old_address->octets + 12, 4);
		__builtin_memcpy(&into, to->addr + 12, 4);
		if (bpf_l4_csum_replace(skb, sum, from, into, 4 | BPF_F_PSEUDO_HDR | mangled) ||
		    bpf_l3_csum_replace(skb, ETHERNET + 10, from, into, 4) ||
		    bpf_skb_store_bytes(skb, ETHERNET + (destination ? 16 : 12), &into, 4, 0))
			return -1;
		return 0;
	}
	__u32 from[4], into[4];
	__s64 difference;

	__builtin_memcpy(from, old_address->octets, 16);
	__builtin_memcpy(into, to->addr, 16);
	difference = bpf_csum_diff(from, 16, into, 16, 0);
	if (bpf_l4_csum_replace(skb, sum, 0, difference, BPF_F_PSEUDO_HDR | mangled) ||
	    bpf_skb_store_bytes(skb, ETHERNET + (destination ? 24 : 8), into, 16, 0))
		return -1;
	return 0;
}

static __always_inline int is_dns(const struct frame *f, __be16 port, __be16 wanted)
{
	return port == wanted && (f->protocol == IPPROTO_UDP || f->protocol == IPPROTO_TCP);
}

/* DNS over TLS is steered only for resolvers that have a row for its port: none, unless the proxy serves it. */
static __always_inline int is_dns_over_tls(const struct frame *f, __be16 port, __be16 wanted)
{
	return wanted && port == wanted && f->protocol == IPPROTO_TCP;
}

/* From the pod: a query to a resolver goes to the proxy. REASON_FLOW: not a query. */
static __always_inline enum reason steer_query(struct __sk_buff *skb, const struct context *c)
{
	const struct frame *f = &c->frame;
	__u32 ifindex = c->ifindex;
	struct steer_key key = {.port = f->destination_port, .family = f->family};
	int plain = is_dns(f, f->destination_port, bpf_htons(53));
	struct steer *to;
	struct bridge *bridge;

	if (!(c->endpoint.flags & ENDPOINT_STEER) ||
	    !(plain || is_dns_over_tls(f, f->destination_port, bpf_htons(853))))
		return REASON_FLOW;
	__builtin_memcpy(key.addr, f->destination.octets, 16);
	to = bpf_map_lookup_elem(&dns_to, &key);
	/* Where egress is open, a resolver that no rule names may be asked past the proxy; nothing is learned from it.
	 */
	if (!to)
		return plain && c->endpoint.flags & ENDPOINT_DENY_EGRESS ? REASON_UNKNOWN_RESOLVER : REASON_FLOW;
	if (f->fragment)
		return REASON_FRAGMENT_STEERED; /* the rest of it can't be steered, and must not pass by the proxy */
	if (c->probe)
		return REASON_STEERED;
	bridge = c->endpoint.flags & ENDPOINT_BRIDGED ? bpf_map_lookup_elem(&bridges, &ifindex) : 0;
	if (c->endpoint.flags & ENDPOINT_BRIDGED && !bridge)
		return REASON_INTERNAL; /* as it came: a refusal is made of what the pod sent */
	if (rewrite(skb, f, &f->destination, f->destination_port, to, 1))
		return REASON_INTERNAL;
	if (bridge) {
		__u8 mac[6];

		__builtin_memcpy(mac, bridge->mac, 6);
		if (bpf_skb_store_bytes(skb, 0, mac, 6, 0) || bpf_skb_change_type(skb, 0 /* PACKET_HOST */))
			return REASON_INTERNAL;
	}
	return REASON_STEERED;
}

/* Beside the workload: a query reaches the proxy without leaving, so what leaves for port 53 goes past it. With names
 * in its rules a workload's own queries go nowhere else, whatever else is open.
 */
static __always_inline enum reason keep_queries(struct __sk_buff *skb, const struct context *c)
{
	if (is_of_proxy(skb, c))
		return REASON_PROXY;
	if (c->endpoint.flags & ENDPOINT_STEER && is_dns(&c->frame, c->frame.destination_port, bpf_htons(53)))
		return REASON_UNKNOWN_RESOLVER;
	return REASON_FLOW;
}

/* To the pod: what the proxy says comes from the resolver that was asked. REASON_FLOW: not from the proxy. */
static __always_inline enum reason steer_reply(struct __sk_buff *skb, const struct context *c)
{
	const struct frame *f = &c->frame;
	struct steer_key key = {.port = f->source_port, .family = f->family};
	__u32 zero = 0;
	struct limits *limit = bpf_map_lookup_elem(&limits, &zero);
	struct steer *from;

	if (!(c->endpoint.flags & ENDPOINT_STEER) || !limit)
		return REASON_FLOW;
	if (!is_dns(f, f->source_port, limit->steer_port) && !is_dns_over_tls(f, f->source_port, limit->steer_tls_port))
		return REASON_FLOW;
	__builtin_memcpy(key.addr, f->source.octets, 16);
	from = bpf_map_lookup_elem(&dns_from, &key);
	if (!from)
		return REASON_FLOW;
	if (c->probe)
		return REASON_STEERED;
	return rewrite(skb, f, &f->source, f->source_port, from, 0) ? REASON_INTERNAL : REASON_STEERED;
}

#endif
