/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the kernel programs and the proxy share: keys, values, flags and reasons of every map.
 *
 * This file is the source. build.rs generates the Rust types from its BTF; dnsproxy/kernel/abi.rs converts and asserts
 * the same sizes. Addresses are 16 octets in network order, IPv4 as ::ffff:a.b.c.d. Ports in keys are in network order.
 * Every struct is laid out without padding, because a hash compares all octets of its key.
 */
#ifndef NAMEGATE_ABI_H
#define NAMEGATE_ABI_H

#include <linux/types.h>

#define ABI_VERSION 4 /* part of the pin directory's name: a change of any layout is a new directory */

struct address {
	__u8 octets[16];
} __attribute__((aligned(8))); /* compared as two words */
_Static_assert(sizeof(struct address) == 16, "no padding");

/* One bit a group of peers; bit 0 is "any peer" and is always set in what a packet matches. */
struct group_bits {
	__u64 words[2];
};

enum endpoint_flag {
	ENDPOINT_DENY_EGRESS = 1,	 /* egress is default deny */
	ENDPOINT_DENY_INGRESS = 2,	 /* ingress is default deny */
	ENDPOINT_STEER = 4,		 /* port 53 goes to the proxy */
	ENDPOINT_REJECT = 8,		 /* refuse with RST or ICMP, not in silence */
	ENDPOINT_AUDIT = 16,		 /* count what would be dropped, and let it pass */
	ENDPOINT_BRIDGED = 32,		 /* the interface is a bridge port */
	ENDPOINT_ENFORCE = 64,		 /* a policy selects it; zero lets through what is well formed */
	ENDPOINT_HAS_MAC = 128,		 /* `mac` was given; otherwise the first good frame teaches it */
	ENDPOINT_CLOSED = 256,		 /* nothing passes: no policy yet, or no addresses known */
	ENDPOINT_HAS_CIDR = 512,	 /* the rule set has prefixes; without, the tries are not looked at */
	ENDPOINT_HAS_PORT_BLOCKS = 1024, /* the rule set has rows in `port_blocks`; without, it is not looked at */
	ENDPOINT_INSIDE = 2048,		 /* what it receives is judged on its own side of the pair, not on the host's */
};

/* endpoints: ifindex -> who is behind it. Replaced as a whole, so that a packet sees the old row or the new one. */
struct endpoint {
	__u32 id; /* 24 bits */
	__u32 slot;
	__u32 policy_id;
	__u32 generation;
	__u32 flags; /* enum endpoint_flag */
	__u8 mac[6];
	__u8 pad[2];
	__u32 adopt_until_s; /* monotonic seconds: until then what it had open before the first start goes on; or 0 */
	struct address addresses[4]; /* unused ones are all zero, which no packet may claim */
};
_Static_assert(sizeof(struct endpoint) == 96, "no padding");

/* budgets: slot -> what the endpoint has in use. Atomics only, on both sides. */
struct budget {
	__u32 flows;
	__u32 grants;
	__u32 fragments;
	__u32 pad;
};

/* limits: one row. What endpoints may have, as user space reckons it from their number. */
struct limits {
	__u32 flow_limit;	  /* flows that no endpoint may go beyond */
	__u32 flow_share;	  /* flows that every endpoint is sure of */
	__u32 flow_pool;	  /* flows that all share beyond that; in use: budgets[0].flows */
	__u32 idle_grace_seconds; /* how much longer than its timeout a conversation may idle and still go on */
	__u32 fragment_share;	  /* datagrams in fragments that every endpoint is sure of */
	__u32 fragment_pool;	  /* those that all share beyond that; in use: budgets[0].fragments */
	__u16 steer_port;	  /* network order: where the proxy listens */
	__u16 steer_tls_port;	  /* the same for DNS over TLS; 0: it is not served */
};
_Static_assert(sizeof(struct limits) == 28, "no padding");

/* buckets: slot -> what this CPU may still say and send about the endpoint in this second. */
struct bucket {
	__u64 second;
	__u32 events;
	__u32 rejects;
	__u32 suppressed; /* events not sent since the last one */
	__u32 pad;
};

/* macs: ifindex -> the source address learned from the first frame with one of the endpoint's addresses. */
struct learned_mac {
	__u8 mac[6];
	__u8 pad[2];
};

enum flow_direction { FLOW_EGRESS = 0, FLOW_INGRESS = 1 };

enum flow_state {
	FLOW_SYN = 0,
	FLOW_ESTABLISHED = 1,
	FLOW_FIN_EGRESS = 2,  /* the pod has sent FIN */
	FLOW_FIN_INGRESS = 3, /* the peer has sent FIN */
	FLOW_CLOSED = 4,      /* FIN both ways, or RST */
	FLOW_DATAGRAM = 5,    /* UDP, ICMP: one way so far */
	FLOW_DATAGRAM_BOTH = 6,
	FLOW_REVOKED = 7, /* policy took it away: what still comes back for it is refused, whatever ingress allows */
};

struct flow_key {
	struct address remote;
	__be16 local_port;	     /* ICMP: the identifier */
	__be16 remote_port;	     /* ICMP: the type of the query << 8, as `ports` knows it */
	__u32 endpoint_and_protocol; /* id << 8 | protocol */
};
_Static_assert(sizeof(struct flow_key) == 24, "no padding");

struct flow {
	__u64 last_ns;
	__u64 created_ns;
	__u32 generation;
	__u32 rule;	/* enum reason that let it pass */
	__u32 isn;	/* sequence number of the SYN, network order */
	__u8 state;	/* enum flow_state */
	__u8 direction; /* enum flow_direction: who opened it */
	__u8 pooled;	/* charged to the shared part of the flow budget */
	__u8 pad;
};
_Static_assert(sizeof(struct flow) == 32, "no padding");

/* fragments: the first fragments that passed, until the last one has arrived or their time is over. */
struct fragment_key {
	struct address source;
	struct address destination;
	__be32 id; /* of 16 bits in IPv4 */
	__u32 endpoint_id;
	__u8 protocol;	/* 0 in IPv6, where it is no part of what receivers go by (RFC 8200, 4.5) */
	__u8 direction; /* enum flow_direction, of the packet */
	__u8 pad[6];
};
_Static_assert(sizeof(struct fragment_key) == 48, "no padding");

struct first_fragment {
	__u64 until_mono_ns;
	__u32 generation; /* of the endpoint when it passed */
	__u32 end;	  /* octets of the datagram up to which it goes: later ones begin there or behind it */
	__u32 arrived;	  /* octets of the datagram that have passed */
	__u32 total;	  /* octets of the whole datagram; 0: the last fragment has not come yet */
	__u8 pooled;	  /* charged to the shared part of the budget */
	__u8 pad[7];
};
_Static_assert(sizeof(struct first_fragment) == 32, "no padding");

struct grant_key {
	__u32 endpoint_id;
	__u8 addr[16];
};
_Static_assert(sizeof(struct grant_key) == 20, "no padding");

struct grant_slot {
	__u64 bits[2];
	__u64 until_mono_ns; /* 0: unused */
};

#define GRANT_SLOTS 4

struct grant {
	struct grant_slot slots[GRANT_SLOTS];
	__u64 last_used_ns;
	__u32 generation;
	__u32 pad;
};
_Static_assert(sizeof(struct grant) == 112, "no padding");

/* peers: address -> peer. Pods and nodes have ids from PEER_FIRST. */
enum peer_id {
	PEER_NONE = 0,
	PEER_HOST = 1,		 /* this node */
	PEER_SERVICE = 2,	 /* a Service's address: only a row of `services` opens it */
	PEER_STEERING = 3,	 /* a local address of the proxy: never opened */
	PEER_HOST_APISERVER = 4, /* this node, at an address at which the API server listens */
	PEER_FIRST = 16,
};

struct peer_bits_key {
	__u32 policy_id;
	__u32 peer_id;
};

struct service_key {
	__u32 policy_id;
	__u8 addr[16];
	__be16 port;
	__u8 protocol;
	__u8 pad;
};
_Static_assert(sizeof(struct service_key) == 24, "no padding");

enum service_verdict { SERVICE_NONE = 0, SERVICE_ALLOW = 1, SERVICE_DENY = 2 };

struct service {
	__u32 verdict; /* enum service_verdict */
};

struct cidr4_key {
	__u32 prefix_len; /* 32 + the prefix: the policy comes first */
	__be32 policy_id;
	__u8 addr[4];
};

struct cidr6_key {
	__u32 prefix_len;
	__be32 policy_id;
	__u8 addr[16];
};

/* ports: single ports, and all of them as port 0. Each row holds the union of all rows that cover it. Looked up: the
 * port itself, then the narrowest block of `port_blocks`, then port 0, then protocol 0 (every protocol, of rules
 * without ports).
 */
struct port_key {
	__u32 policy_id;
	__be16 port;	/* 0: any */
	__u8 protocol;	/* 0: any */
	__u8 direction; /* enum flow_direction */
};
_Static_assert(sizeof(struct port_key) == 8, "no padding");

/* port_blocks: ports that share their leading bits, as pieces of ranges and types of ICMP are (type << 8 | code). */
struct port_block_key {
	__u32 prefix_len; /* 48 + the bits of the port that are given */
	__be32 policy_id;
	__u8 direction; /* enum flow_direction */
	__u8 protocol;	/* never 0 */
	__be16 port;
};
_Static_assert(sizeof(struct port_block_key) == 12, "no padding");

struct port_row {
	struct group_bits allow;
	struct group_bits deny;
};

struct steer_key {
	__u8 addr[16];
	__be16 port;
	__u16 family; /* 4 or 6 */
};
_Static_assert(sizeof(struct steer_key) == 20, "no padding");

struct steer {
	__u8 addr[16];
	__be16 port;
	__u8 pad[2];
};
_Static_assert(sizeof(struct steer) == 20, "no padding");

/* proxy_sockets: what the proxy itself asks its servers on, where it runs beside the workload. */
struct proxy_socket_key {
	struct address remote;
	__be16 remote_port;
	__be16 local_port;
	__u32 protocol;
};
_Static_assert(sizeof(struct proxy_socket_key) == 24, "no padding");

struct proxy_socket {
	__u64 cookie; /* of the socket, SO_COOKIE */
};

/* bridges: ifindex of a bridged endpoint -> the bridge's own MAC, to which steered frames are readdressed. */
struct bridge {
	__u8 mac[6];
	__u8 pad[2];
};

/* Why a frame passed or not. Zero refuses. Names of the drops go to metrics and flows as they stand here. */
enum reason {
	REASON_NO_ENDPOINT = 0,
	REASON_ENDPOINT_CLOSED,
	REASON_MALFORMED,
	REASON_ETHERTYPE,
	REASON_TAGGED,
	REASON_SOURCE_ROUTE,
	REASON_EXTENSION_HEADER,
	REASON_FRAGMENT_LONE,	   /* a later one, of no first that passed, or one that came before its first */
	REASON_FRAGMENT_TINY,	   /* a first one without its whole L4 header (RFC 1858, RFC 7112) */
	REASON_FRAGMENT_OVERLAP,   /* it begins before the end of the first, or is a second first (RFC 5722) */
	REASON_FRAGMENT_MALFORMED, /* lengths that no datagram has, or a protocol that is never fragmented */
	REASON_FRAGMENT_ATOMIC,	   /* IPv6: first and last in one; nobody needs them (RFC 8021) */
	REASON_FRAGMENT_STEERED,   /* of a query to a resolver that is steered: the proxy gets whole packets only */
	REASON_FRAGMENT_BUDGET,	   /* no room to remember the first */
	REASON_PROTOCOL,
	REASON_SPOOFED_ADDRESS,
	REASON_SPOOFED_MAC,
	REASON_OTHER_DESTINATION, /* to the pod, but not to an address of the pod */
	REASON_ARP_SPOOFED,
	REASON_ND_SPOOFED,
	REASON_UNKNOWN_RESOLVER,
	REASON_STEERING_ADDRESS,
	REASON_NO_GRANT,    /* default deny, no policy row matched */
	REASON_EXPIRED,	    /* a grant was there, its time is over */
	REASON_POLICY_DENY, /* an explicit deny */
	REASON_NOT_A_REPLY, /* belongs to a flow, but opens the other direction */
	REASON_FLOW_BUDGET,
	REASON_FLOW_TABLE,
	REASON_ICMP_UNRELATED, /* an ICMP error that quotes no live flow */
	REASON_INTERNAL,       /* a map look-up that can't fail did */
	REASON_LAST_DROP = REASON_INTERNAL,
	REASON_FLOW, /* from here on: passed */
	REASON_GRANTED,
	REASON_CIDR,
	REASON_PEER,
	REASON_SERVICE,
	REASON_DEFAULT_ALLOW,
	REASON_HOST,
	REASON_STEERED,
	REASON_ARP,
	REASON_ND,
	REASON_ICMP_RELATED,
	REASON_FRAGMENT_FOLLOWS, /* a later fragment of a first that passed */
	REASON_UNENFORCED,	 /* no policy selects the endpoint */
	REASON_AUDIT,		 /* would have been dropped */
	REASON_PROXY,		 /* the proxy's own, beside the workload */
	REASON_ADOPTED,		 /* open since before the first start */
	REASON_COUNT,
};

/* counters: reason | direction << 6 -> packets and octets, one row a CPU. */
struct counter {
	__u64 packets;
	__u64 octets;
};
#define COUNTER_ROWS 128
_Static_assert(REASON_COUNT <= 64, "a direction's rows");

struct flow_event {
	__u64 time_mono_ns;
	__u32 endpoint_id;
	__u32 ifindex;
	struct address source;
	struct address destination;
	__be16 source_port;
	__be16 destination_port;
	__u32 octets;
	__u32 suppressed; /* events of this endpoint that were not sent since the last one */
	__u32 policy_id;
	__u32 generation;
	__u8 reason; /* enum reason */
	__u8 protocol;
	__u8 family; /* 4, 6, or 0 when the frame was not IP */
	__u8 tcp_flags;
	__u8 direction; /* enum flow_direction, of the packet */
	__u8 rejected;
	__u8 reply; /* the packet is a reply of its flow */
	__u8 icmp_type;
	__u8 audited; /* with REASON_AUDIT: the enum reason that it would have been dropped for */
	__u8 pad[3];
};
_Static_assert(sizeof(struct flow_event) == 80, "no padding");

#endif
