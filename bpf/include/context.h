/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What one run of a program knows and how it speaks: settings, the context, counters and events. */
#ifndef NAMEGATE_CONTEXT_H
#define NAMEGATE_CONTEXT_H

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
/* Beside the workload; all 0 on the host's side, where the verifier takes away what is for them. */
const volatile __u32 proxy_port_first = 0; /* the proxy's own sockets have local ports from here on */
const volatile __u32 proxy_port_last = 0;
const volatile __u32 reject_mark = 0; /* what comes in with it is our own refusal, on its way to the workload */
/* Where inbound traffic is judged inside the pods: what has it on its way to one is our own word and judged already. No
 * pod can set it, and nothing that comes from a wire has one: a mark ends where a network namespace does.
 */
const volatile __u32 inbound_mark = 0;
const volatile __u32 inside = 0; /* to_pod on the pods' own interfaces: inside.bpf.c says whose it is in cb[0] */

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
	__u8 audited; /* with REASON_AUDIT: what it would have been dropped for */
	__u8 opened;  /* enum flow_direction, of the flow that begins */
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
	event->audited = c->audited;
	__builtin_memset(event->pad, 0, sizeof(event->pad));
	bucket->suppressed = 0;
	bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
}

#endif
