/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* May this frame pass? Endpoint, frame, anti-spoofing, steering, flow, policy: in this order, in both directions
 * (DESIGN 4). Every branch ends in a reason; act() in the hook counts it and does what it says.
 */
#ifndef NAMEGATE_VERDICT_H
#define NAMEGATE_VERDICT_H

#include "maps.h"
#include "parse.h"

#define SECOND 1000000000ULL

/* Set before load. */
const volatile __u32 probe_mark = 0; /* a test run with this mark leaves no trace; 0: none does */
const volatile __u64 syn_timeout_ns = 60 * SECOND;
const volatile __u64 established_timeout_ns = 8 * 3600 * SECOND;
const volatile __u64 closed_timeout_ns = 10 * SECOND;
const volatile __u64 datagram_timeout_ns = 60 * SECOND;
const volatile __u64 datagram_both_timeout_ns = 180 * SECOND;
const volatile __u32 events_per_second = 100;
const volatile __u32 rejects_per_second = 100;

/* Only so that their types reach the BTF, and by it the Rust side: no map has them as a value. */
const volatile struct flow_event abi_flow_event = {};
const volatile enum endpoint_flag abi_endpoint_flag = 0;
const volatile enum reason abi_reason = 0;

/* What one run knows. The endpoint's row is copied: a flip in the middle of a packet must not mix two policies. */
struct context {
	struct endpoint endpoint;
	struct frame frame;
	__u64 now;
	__u32 ifindex;
	__u8 direction; /* enum flow_direction, of the packet */
	__u8 probe;
	__u8 reply;
};

static __always_inline void count(__u32 reason, __u32 direction, __u32 octets)
{
	__u32 row = reason | direction << 6;
	struct counter *counter = bpf_map_lookup_elem(&counters, &row);

	if (counter) {
		counter->packets++;
		counter->octets += octets;
	}
}

static __always_inline struct bucket *bucket_of(const struct context *c)
{
	__u32 slot = c->endpoint.slot;
	struct bucket *bucket = bpf_map_lookup_elem(&buckets, &slot);
	__u64 second = c->now / SECOND;

	if (bucket && bucket->second != second) {
		bucket->second = second;
		bucket->events = 0;
		bucket->rejects = 0;
	}
	return bucket;
}

/* Tells user space. May be lost; the counters are what is exact. */
static __always_inline void tell(const struct context *c, enum reason reason, int rejected)
{
	struct bucket *bucket = bucket_of(c);
	struct flow_event *event;

	if (!bucket)
		return;
	if (bucket->events >= events_per_second) {
		bucket->suppressed++;
		return;
	}
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		bucket->suppressed++;
		return;
	}
	bucket->events++;
	event->time_mono_ns = c->now;
	event->endpoint_id = c->endpoint.id;
	event->ifindex = c->ifindex;
	event->source = c->frame.source;
	event->destination = c->frame.destination;
	event->source_port = c->frame.source_port;
	event->destination_port = c->frame.destination_port;
	event->octets = c->frame.octets;
	event->suppressed = bucket->suppressed;
	event->policy_id = c->endpoint.policy_id;
	event->generation = c->endpoint.generation;
	event->reason = reason;
	event->protocol = c->frame.protocol;
	event->family = c->frame.family;
	event->tcp_flags = c->frame.tcp_flags;
	event->direction = c->direction;
	event->rejected = rejected;
	event->reply = c->reply;
	event->icmp_type = c->frame.icmp_type;
	event->pad = 0;
	bucket->suppressed = 0;
	bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
}

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
SEPARATE enum reason police_arp(struct __sk_buff *skb, const struct context *c)
{
	void *data_end = (void *)(long)skb->data_end;
	struct ethernet_arp *arp = (void *)(long)skb->data;
	struct address sender;
	__be32 ip;

	if (!c)
		return REASON_INTERNAL;
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

/* Neighbour discovery of a pod (RFC 4861): it solicits, and advertises itself; it is no router. */
SEPARATE enum reason police_nd(struct __sk_buff *skb, const struct context *c)
{
	void *data_end = (void *)(long)skb->data_end;
	struct ethhdr *ethernet = (void *)(long)skb->data;
	const struct frame *f;
	struct address target;
	__u8 *at;
	__u8 mac[6];

	if (!c)
		return REASON_INTERNAL;
	f = &c->frame;
	if ((void *)(ethernet + 1) > data_end)
		return REASON_MALFORMED;
	__builtin_memcpy(mac, ethernet->h_source, 6);
	if (!owns(&c->endpoint, &f->source) && !link_local_is_own(c, &f->source, mac) && !is_unspecified(&f->source))
		return REASON_SPOOFED_ADDRESS;
	if (owns(&c->endpoint, &f->source) && !mac_is_own(c, mac))
		return REASON_SPOOFED_MAC;
	if (f->icmp_type == MLD_REPORT || f->icmp_type == MLD_DONE || f->icmp_type == MLD2_REPORT)
		return f->hop_limit == 1 && is_multicast(f) ? REASON_ND : REASON_ND_SPOOFED;
	if (f->hop_limit != 255 || f->l4_offset != ETHERNET + sizeof(struct ipv6hdr) || f->icmp_code)
		return REASON_ND_SPOOFED;
	if (f->icmp_type == ND_ROUTER_SOLICIT)
		return REASON_ND;
	if (f->icmp_type != ND_NEIGHBOUR_SOLICIT && f->icmp_type != ND_NEIGHBOUR_ADVERT)
		return REASON_ND_SPOOFED;
	at = (void *)(long)skb->data + ETHERNET + sizeof(struct ipv6hdr) + 8;
	if ((void *)(at + 16) > data_end)
		return REASON_MALFORMED;
	__builtin_memcpy(target.octets, at, 16);
	if (f->icmp_type == ND_NEIGHBOUR_ADVERT && !owns(&c->endpoint, &target) && !link_local_is_own(c, &target, mac))
		return REASON_ND_SPOOFED;
	/* The link-layer address option, the only one that these two carry. */
	if ((void *)(at + 24) <= data_end && at[16] <= 2 && !same_mac(at + 18, mac))
		return REASON_ND_SPOOFED;
	return REASON_ND;
}

/* From the pod: the source must be its own. To the pod: the destination must be. */
static __always_inline enum reason police_addresses(struct __sk_buff *skb, const struct context *c)
{
	struct ethhdr *ethernet = (void *)(long)skb->data;
	__u8 mac[6];

	if (c->direction == FLOW_INGRESS) {
		if (is_multicast(&c->frame) || owns(&c->endpoint, &c->frame.destination))
			return REASON_FLOW;
		return REASON_OTHER_DESTINATION;
	}
	if (!owns(&c->endpoint, &c->frame.source))
		return REASON_SPOOFED_ADDRESS;
	if ((void *)(ethernet + 1) > (void *)(long)skb->data_end)
		return REASON_MALFORMED;
	__builtin_memcpy(mac, ethernet->h_source, 6);
	return mac_is_own(c, mac) ? REASON_FLOW : REASON_SPOOFED_MAC;
}

static __always_inline int meets(const struct group_bits *a, const struct group_bits *b)
{
	return (a->words[0] & b->words[0]) || (a->words[1] & b->words[1]);
}

static __always_inline void add(struct group_bits *to, const struct group_bits *more)
{
	to->words[0] |= more->words[0];
	to->words[1] |= more->words[1];
}

/* Groups that live grants open for the address. A flow that exists counts expired slots too: it outlives its TTL, but
 * not its rule (I9), because a reload clears the bits of what it takes away.
 */
static __always_inline void granted(const struct context *c, const struct address *remote, int established,
				    struct group_bits *groups, int *expired)
{
	struct grant_key key;
	struct grant *grant;

	key.endpoint_id = c->endpoint.id;
	__builtin_memcpy(key.addr, remote->octets, 16);
	grant = bpf_map_lookup_elem(&grants, &key);
	if (!grant)
		return;
#pragma unroll
	for (int i = 0; i < GRANT_SLOTS; i++) {
		if (!grant->slots[i].until_mono_ns)
			continue;
		if (established || c->now < grant->slots[i].until_mono_ns) {
			groups->words[0] |= grant->slots[i].bits[0];
			groups->words[1] |= grant->slots[i].bits[1];
		} else {
			*expired = 1;
		}
	}
	if (!c->probe)
		grant->last_used_ns = c->now;
}

static __always_inline struct group_bits *cidr_of(const struct context *c, const struct address *remote)
{
	if (!(c->endpoint.flags & ENDPOINT_HAS_CIDR))
		return 0;
	if (c->frame.family == 4) {
		struct cidr4_key key = {.prefix_len = 64, .policy_id = bpf_htonl(c->endpoint.policy_id)};

		__builtin_memcpy(key.addr, remote->octets + 12, 4);
		return bpf_map_lookup_elem(&cidr4, &key);
	}
	struct cidr6_key key = {.prefix_len = 160, .policy_id = bpf_htonl(c->endpoint.policy_id)};

	__builtin_memcpy(key.addr, remote->octets, 16);
	return bpf_map_lookup_elem(&cidr6, &key);
}

static __always_inline struct port_row *ports_of(const struct context *c, __u8 direction, __be16 port)
{
	struct port_key key = {.policy_id = c->endpoint.policy_id,
			       .port = port,
			       .protocol = c->frame.protocol,
			       .direction = direction};
	struct port_row *row = bpf_map_lookup_elem(&ports, &key);

	if (row)
		return row;
	key.port = 0;
	row = bpf_map_lookup_elem(&ports, &key);
	if (row)
		return row;
	key.protocol = 0;
	return bpf_map_lookup_elem(&ports, &key);
}

/* The policy's word on a conversation that was, or would be, opened in `direction` with `remote` at the responder's
 * `port`. A constant number of look-ups whatever the number of rules.
 */
SEPARATE enum reason policy(const struct context *c, const struct address *remote, __u32 direction_and_port,
			    int established)
{
	struct group_bits matched = {.words = {1, 0}}, by_grant = {}, by_peer = {}, by_cidr = {};
	__u8 direction = direction_and_port >> 16;
	__be16 port = direction_and_port;
	struct port_row *row;
	__u32 *peer;
	int expired = 0;

	if (!c || !remote)
		return REASON_INTERNAL;
	if (direction == FLOW_EGRESS)
		granted(c, remote, established, &by_grant, &expired);
	peer = bpf_map_lookup_elem(&peers, remote);
	if (peer && *peer == PEER_STEERING)
		return REASON_STEERING_ADDRESS;
	if (peer && *peer == PEER_SERVICE && direction == FLOW_EGRESS) {
		struct service_key key = {
			.policy_id = c->endpoint.policy_id, .port = port, .protocol = c->frame.protocol};
		struct service *service;

		__builtin_memcpy(key.addr, remote->octets, 16);
		service = bpf_map_lookup_elem(&services, &key);
		if (service && service->verdict == SERVICE_ALLOW)
			return REASON_SERVICE;
		if (service && service->verdict == SERVICE_DENY)
			return REASON_POLICY_DENY;
		return c->endpoint.flags & ENDPOINT_DENY_EGRESS ? REASON_NO_GRANT : REASON_DEFAULT_ALLOW;
	}
	if (peer) {
		struct peer_bits_key key = {.policy_id = c->endpoint.policy_id, .peer_id = *peer};
		struct group_bits *bits = bpf_map_lookup_elem(&peer_bits, &key);

		if (bits)
			by_peer = *bits;
	} else {
		struct group_bits *bits = cidr_of(c, remote);

		if (bits)
			by_cidr = *bits;
	}
	add(&matched, &by_grant);
	add(&matched, &by_peer);
	add(&matched, &by_cidr);
	row = ports_of(c, direction, port);
	if (row && meets(&matched, &row->deny))
		return REASON_POLICY_DENY;
	if (row && meets(&matched, &row->allow)) {
		if (meets(&by_grant, &row->allow))
			return REASON_GRANTED;
		return meets(&by_peer, &row->allow) ? REASON_PEER : REASON_CIDR;
	}
	if (direction == FLOW_INGRESS && peer && *peer == PEER_HOST)
		return REASON_HOST; /* kubelet's probes, as in Cilium */
	if (!(c->endpoint.flags & (direction == FLOW_EGRESS ? ENDPOINT_DENY_EGRESS : ENDPOINT_DENY_INGRESS)))
		return REASON_DEFAULT_ALLOW;
	return expired ? REASON_EXPIRED : REASON_NO_GRANT;
}

static __always_inline struct budget *budget_of(__u32 slot)
{
	return bpf_map_lookup_elem(&budgets, &slot);
}

/* One more flow for the endpoint: of its own share, else of the pool. -1: neither has room. */
static __always_inline int charge(const struct context *c)
{
	__u32 zero = 0;
	struct limits *limit = bpf_map_lookup_elem(&limits, &zero);
	struct budget *own = budget_of(c->endpoint.slot), *pool = budget_of(0);
	__u32 before;

	if (!limit || !own || !pool)
		return -1;
	before = __sync_fetch_and_add(&own->flows, 1);
	if (before < limit->flow_limit) {
		if (before < limit->flow_share)
			return 0;
		if (__sync_fetch_and_add(&pool->flows, 1) < limit->flow_pool)
			return 1;
		__sync_fetch_and_add(&pool->flows, -1);
	}
	__sync_fetch_and_add(&own->flows, -1);
	return -1;
}

static __always_inline void discharge(const struct context *c, int pooled)
{
	struct budget *own = budget_of(c->endpoint.slot), *pool = budget_of(0);

	if (own)
		__sync_fetch_and_add(&own->flows, -1);
	if (pool && pooled)
		__sync_fetch_and_add(&pool->flows, -1);
}

static __always_inline __u64 timeout_of(__u8 state)
{
	switch (state) {
	case FLOW_ESTABLISHED:
	case FLOW_FIN_EGRESS:
	case FLOW_FIN_INGRESS:
		return established_timeout_ns;
	case FLOW_CLOSED:
		return closed_timeout_ns;
	case FLOW_DATAGRAM:
		return datagram_timeout_ns;
	case FLOW_DATAGRAM_BOTH:
	case FLOW_REVOKED:
		return datagram_both_timeout_ns;
	default:
		return syn_timeout_ns;
	}
}

static __always_inline int opens(const struct frame *f)
{
	if (f->protocol == IPPROTO_TCP)
		return (f->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
	if (f->protocol == IPPROTO_ICMP)
		return f->icmp_type == ICMP_ECHO;
	if (f->protocol == IPPROTO_ICMPV6)
		return f->icmp_type == ICMPV6_ECHO_REQUEST;
	return 0;
}

/* A packet of a live flow moves its state on. Plain stores: two CPUs may lose one step, never open anything. */
static __always_inline void advance(const struct context *c, struct flow *flow)
{
	__u8 flags = c->frame.tcp_flags, state = flow->state;

	if (c->frame.protocol == IPPROTO_TCP) {
		__u8 mine = c->direction == FLOW_EGRESS ? FLOW_FIN_EGRESS : FLOW_FIN_INGRESS;
		__u8 other = c->direction == FLOW_EGRESS ? FLOW_FIN_INGRESS : FLOW_FIN_EGRESS;

		if (flags & TCP_RST)
			state = FLOW_CLOSED;
		else if (state == FLOW_SYN && c->reply)
			state = FLOW_ESTABLISHED;
		if (!(flags & TCP_RST) && (flags & TCP_FIN))
			state = state == other || state == FLOW_CLOSED ? FLOW_CLOSED : mine;
	} else if (state == FLOW_DATAGRAM && c->reply) {
		state = FLOW_DATAGRAM_BOTH;
	}
	if (state != flow->state)
		flow->state = state;
	else if (c->now - flow->last_ns < SECOND)
		return; /* spare the cache line */
	flow->last_ns = c->now;
}

static __always_inline void forget(const struct context *c, const struct flow_key *key, int pooled)
{
	if (!c->probe && !bpf_map_delete_elem(&flows, key))
		discharge(c, pooled);
}

/* Policy took the flow away. It is remembered, for the other side does not know and goes on sending; without this, what
 * it sends would pass wherever ingress is open.
 */
static __always_inline void revoke(const struct context *c, struct flow *flow, __u32 reason)
{
	if (c->probe)
		return;
	flow->state = FLOW_REVOKED;
	flow->generation = c->endpoint.generation;
	flow->rule = reason;
	flow->last_ns = c->now;
}

/* Records a conversation that policy has just allowed. */
static __always_inline enum reason remember(const struct context *c, const struct flow_key *key, enum reason reason)
{
	struct flow fresh = {
		.last_ns = c->now,
		.created_ns = c->now,
		.generation = c->endpoint.generation,
		.rule = reason,
		.isn = opens(&c->frame) ? c->frame.sequence : 0,
		.state = c->frame.protocol != IPPROTO_TCP ? FLOW_DATAGRAM
			 : (c->frame.tcp_flags & TCP_RST) ? FLOW_CLOSED
							  : FLOW_SYN,
		.direction = c->direction,
	};
	int pooled;
	long failed;

	if (c->probe)
		return reason;
	pooled = charge(c);
	if (pooled < 0)
		return REASON_FLOW_BUDGET;
	fresh.pooled = pooled;
	failed = bpf_map_update_elem(&flows, key, &fresh, BPF_NOEXIST);
	if (!failed)
		return reason;
	discharge(c, pooled);
	return failed == -17 /* EEXIST: another CPU was first */ ? reason : REASON_FLOW_TABLE;
}

static __always_inline void key_of(const struct context *c, struct flow_key *key)
{
	const struct frame *f = &c->frame;
	int egress = c->direction == FLOW_EGRESS;

	key->remote = egress ? f->destination : f->source;
	key->local_port = egress ? f->source_port : f->destination_port;
	key->remote_port = egress ? f->destination_port : f->source_port;
	if (f->protocol == IPPROTO_ICMP || f->protocol == IPPROTO_ICMPV6) {
		key->local_port = f->source_port;
		key->remote_port = 0;
	}
	key->endpoint_and_protocol = c->endpoint.id << 8 | f->protocol;
}

/* The responder's port as `ports` knows it. */
static __always_inline __be16 responder_port(const struct context *c, const struct flow_key *key, __u8 direction)
{
	if (c->frame.protocol == IPPROTO_ICMP || c->frame.protocol == IPPROTO_ICMPV6) {
		__u8 echo = c->frame.protocol == IPPROTO_ICMP ? ICMP_ECHO : ICMPV6_ECHO_REQUEST;

		return bpf_htons((__u16)echo << 8);
	}
	return direction == FLOW_EGRESS ? key->remote_port : key->local_port;
}

static __always_inline int passes(enum reason reason)
{
	return reason > REASON_LAST_DROP;
}

/* The flow of the packet, and the policy when there is none, when it asks to open one, or when it changed. */
SEPARATE enum reason converse(struct context *c)
{
	struct flow_key key = {};
	struct flow *flow;
	enum reason reason;
	int opening, revoked = 0;
	__u8 icmp;

	if (!c)
		return REASON_INTERNAL;
	opening = opens(&c->frame);
	icmp = c->frame.protocol == IPPROTO_ICMP || c->frame.protocol == IPPROTO_ICMPV6;
	key_of(c, &key);
	flow = bpf_map_lookup_elem(&flows, &key);
	if (flow && c->now > flow->last_ns && c->now - flow->last_ns > timeout_of(flow->state)) {
		forget(c, &key, flow->pooled);
		flow = 0;
	}
	if (flow) {
		__u8 direction = flow->direction;
		__u32 generation = c->endpoint.generation;

		c->reply = direction != c->direction;
		if (flow->generation != generation) {
			reason = policy(c, &key.remote, (__u32)direction << 16 | responder_port(c, &key, direction), 1);
			if (!passes(reason)) {
				revoke(c, flow, reason);
				return reason;
			}
			if (!c->probe) {
				flow->generation = generation;
				if (flow->state == FLOW_REVOKED)
					flow->state = c->frame.protocol == IPPROTO_TCP ? FLOW_ESTABLISHED
										       : FLOW_DATAGRAM_BOTH;
			}
		}
		revoked = flow->state == FLOW_REVOKED;
		if (revoked && c->reply && !opening) {
			revoke(c, flow, flow->rule);
			return flow->rule;
		}
		if (!revoked && (!opening || (icmp && !c->reply))) {
			if (!c->probe)
				advance(c, flow);
			return REASON_FLOW;
		}
		if (!revoked && !icmp && !c->reply && flow->state == FLOW_SYN && flow->isn == c->frame.sequence)
			return REASON_FLOW; /* the same SYN once more */
	}
	if (icmp && !opening)
		return REASON_NOT_A_REPLY;
	reason = policy(c, &key.remote, (__u32)c->direction << 16 | responder_port(c, &key, c->direction), 0);
	if (!passes(reason))
		return flow && c->reply && reason == REASON_NO_GRANT ? REASON_NOT_A_REPLY : reason;
	c->reply = 0;
	if (flow)
		forget(c, &key, flow->pooled);
	return remember(c, &key, reason);
}

/* An ICMP error passes when what it quotes is a live flow of this endpoint, seen from the other side (RFC 1122, 3.2.2;
 * path MTU discovery needs it).
 */
SEPARATE enum reason relate(struct __sk_buff *skb, struct context *c)
{
	struct flow_key key = {};
	struct flow *flow;
	struct frame *f;
	__u32 quoted, ports;
	struct address source, destination;
	__be16 port[2];

	if (!c)
		return REASON_INTERNAL;
	f = &c->frame;
	quoted = f->l4_offset + 8;
	ports = quoted + sizeof(struct ipv6hdr);
	if (f->family == 4) {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, quoted, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5)
			return REASON_MALFORMED;
		set_v4(&source, ip.saddr);
		set_v4(&destination, ip.daddr);
		key.endpoint_and_protocol = ip.protocol;
		ports = quoted + ip.ihl * 4;
	} else {
		struct ipv6hdr ip;

		if (bpf_skb_load_bytes(skb, quoted, &ip, sizeof(ip)) || ip.version != 6)
			return REASON_MALFORMED;
		__builtin_memcpy(&source, &ip.saddr, 16);
		__builtin_memcpy(&destination, &ip.daddr, 16);
		key.endpoint_and_protocol = ip.nexthdr;
	}
	if (bpf_skb_load_bytes(skb, ports, port, sizeof(port)))
		return REASON_MALFORMED;
	if (key.endpoint_and_protocol == IPPROTO_ICMP || key.endpoint_and_protocol == IPPROTO_ICMPV6) {
		if (bpf_skb_load_bytes(skb, ports + 4, port, 2))
			return REASON_MALFORMED;
		port[1] = 0;
		key.local_port = port[0];
	} else {
		/* To the pod: it quotes what the pod sent. From the pod: what it received. */
		key.local_port = c->direction == FLOW_INGRESS ? port[0] : port[1];
		key.remote_port = c->direction == FLOW_INGRESS ? port[1] : port[0];
	}
	if (!owns(&c->endpoint, c->direction == FLOW_INGRESS ? &source : &destination))
		return REASON_ICMP_UNRELATED;
	key.remote = c->direction == FLOW_INGRESS ? destination : source;
	key.endpoint_and_protocol |= c->endpoint.id << 8;
	flow = bpf_map_lookup_elem(&flows, &key);
	if (!flow || flow->generation != c->endpoint.generation || flow->state == FLOW_REVOKED ||
	    (c->now > flow->last_ns && c->now - flow->last_ns > timeout_of(flow->state)))
		return REASON_ICMP_UNRELATED;
	return REASON_ICMP_RELATED;
}

static __always_inline int is_icmp_error(const struct frame *f)
{
	if (f->protocol == IPPROTO_ICMP)
		return f->icmp_type == ICMP_DEST_UNREACH || f->icmp_type == ICMP_TIME_EXCEEDED ||
		       f->icmp_type == ICMP_PARAMETERPROB;
	return f->protocol == IPPROTO_ICMPV6 && f->icmp_type >= ICMPV6_DEST_UNREACH && f->icmp_type <= ICMPV6_PARAMPROB;
}

static __always_inline int is_echo(const struct frame *f)
{
	if (f->protocol == IPPROTO_ICMP)
		return f->icmp_type == ICMP_ECHO || f->icmp_type == ICMP_ECHOREPLY;
	return f->icmp_type == ICMPV6_ECHO_REQUEST || f->icmp_type == ICMPV6_ECHO_REPLY;
}

/* What is left when endpoint, frame, addresses and steering have had their say. */
static __always_inline enum reason decide(struct __sk_buff *skb, struct context *c)
{
	const struct frame *f = &c->frame;

	if (f->protocol == IPPROTO_ICMP || f->protocol == IPPROTO_ICMPV6) {
		if (is_icmp_error(f))
			return relate(skb, c);
		if (!is_echo(f))
			return REASON_PROTOCOL;
	}
	return converse(c);
}

/* Fills the context. REASON_FLOW: go on. */
static __always_inline enum reason begin(struct __sk_buff *skb, struct context *c, __u8 direction)
{
	__u32 ifindex = skb->ifindex;
	struct endpoint *row = bpf_map_lookup_elem(&endpoints, &ifindex);

	c->now = bpf_ktime_get_coarse_ns();
	c->ifindex = ifindex;
	c->direction = direction;
	c->probe = probe_mark && skb->mark == probe_mark;
	c->frame.octets = skb->len;
	if (!row)
		return REASON_NO_ENDPOINT;
	c->endpoint = *row;
	if (c->endpoint.flags & ENDPOINT_CLOSED)
		return REASON_ENDPOINT_CLOSED;
	return REASON_FLOW;
}

/* No policy selects the endpoint: it may do what it likes, as itself. */
static __always_inline enum reason unenforced(enum reason reason)
{
	switch (reason) {
	case REASON_SPOOFED_ADDRESS:
	case REASON_SPOOFED_MAC:
	case REASON_ARP_SPOOFED:
	case REASON_ND_SPOOFED:
		return reason;
	default:
		return REASON_UNENFORCED;
	}
}

#endif
