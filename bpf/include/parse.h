/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From a frame to what the verdict needs to know of it (I11). Whatever is not understood is refused with the
 * reason; nothing is skipped over. Offsets are from the Ethernet header.
 */
#ifndef NAMEGATE_PARSE_H
#define NAMEGATE_PARSE_H

#include "abi.h"
#include "packet.h"
#include <linux/icmpv6.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* A function that the verifier looks at once, by itself, and not again on every path that leads to it: without it
 * from_pod took 408 000 instructions to verify. Such a function is global, and its pointers may be null as far as it
 * knows.
 */
#define SEPARATE __attribute__((noinline))

#define ETHERNET 14
#define PULL 192	 /* octets made linear: every header that is walked lies within */
#define EXTENSIONS_MAX 6 /* extension headers of one packet */
#define IPV4_OPTIONS_MAX 40

#define TCP_FIN 1
#define TCP_SYN 2
#define TCP_RST 4
#define TCP_ACK 16

#define ND_ROUTER_SOLICIT 133
#define ND_NEIGHBOUR_SOLICIT 135
#define ND_NEIGHBOUR_ADVERT 136
#define ND_REDIRECT 137
#define MLD_REPORT 131
#define MLD_DONE 132
#define MLD2_REPORT 143

/* Of linux/icmp.h and linux/if_arp.h, which pull in the C library's headers. */
#define ICMP_ECHOREPLY 0
#define ICMP_DEST_UNREACH 3
#define ICMP_ECHO 8
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12
#define ICMP_TIMESTAMP 13
#define ICMP_TIMESTAMPREPLY 14
#define ICMP_EXT_ECHO 42 /* RFC 8335 */
#define ICMP_EXT_ECHOREPLY 43
#define ICMPV6_EXT_ECHO_REQUEST 160
#define ICMPV6_EXT_ECHO_REPLY 161
#define ICMP_PKT_FILTERED 13 /* a code */
#define ARPHRD_ETHER 1
#define ARPOP_REQUEST 1

struct icmp_header {
	__u8 type;
	__u8 code;
	__sum16 checksum;
	__be16 identifier; /* of a query */
	__be16 sequence;
};

/* RFC 8200, 4.5. */
struct fragment_header {
	__u8 next;
	__u8 reserved;
	__be16 offset; /* octets; the last three bits: two reserved, and whether more follow */
	__be32 id;
};

enum fragment_place { FRAGMENT_NONE = 0, FRAGMENT_FIRST = 1, FRAGMENT_LATER = 2 };

/* REASON_FLOW stands for "understood, go on"; REASON_ARP and REASON_ND for link protocols that the caller polices. */
struct frame {
	struct address source;
	struct address destination;
	__be16 source_port; /* ICMP query: the identifier */
	__be16 destination_port;
	__be32 sequence;
	__u32 octets;
	__u32 end; /* of the IP packet, in the frame: what stands behind it is padding, and no receiver reads it */
	/* Of a fragment. A later one has no ports and no L4 header. */
	__be32 fragment_id;
	__u32 fragment_begin; /* octets of the datagram before it */
	__u32 fragment_end;
	__u8 fragment; /* enum fragment_place */
	__u8 fragment_last;
	__u16 l4_offset;
	__u8 protocol;
	__u8 family; /* 4 or 6 as soon as the addresses are read; 0 otherwise */
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 hop_limit;
};

static __always_inline void set_v4(struct address *to, __be32 from)
{
	__u32 *words = (__u32 *)to->octets;

	words[0] = 0;
	words[1] = 0;
	words[2] = bpf_htonl(0xffff);
	words[3] = from;
}

static __always_inline int same_address(const struct address *a, const struct address *b)
{
	const __u64 *x = (const __u64 *)a->octets, *y = (const __u64 *)b->octets;

	return x[0] == y[0] && x[1] == y[1];
}

static __always_inline int is_link_local(const struct address *a)
{
	return a->octets[0] == 0xfe && (a->octets[1] & 0xc0) == 0x80;
}

static __always_inline int is_unspecified(const struct address *a)
{
	const __u64 *words = (const __u64 *)a->octets;

	return !(words[0] | words[1]);
}

/* ::ffff:0:0/96 (RFC 4291, 2.5.5.2). */
static __always_inline int is_mapped(const struct address *a)
{
	const __u32 *words = (const __u32 *)a->octets;

	return !(words[0] | words[1]) && words[2] == bpf_htonl(0xffff);
}

static __always_inline int is_multicast(const struct frame *f)
{
	if (f->family == 6)
		return f->destination.octets[0] == 0xff;
	return (f->destination.octets[12] & 0xf0) == 224 || *(__be32 *)(f->destination.octets + 12) == 0xffffffff;
}

/* Loose and strict source routes lead a packet past the address that was judged (RFC 791, 3.1). On a copy: the verifier
 * (clang 14, Linux 6.18) loses the bounds of a packet pointer that moves by what it reads.
 */
SEPARATE enum reason walk_options(PACKET *packet, __u32 length)
{
	__u8 options[64] = {};
	__u32 at = 0;

	if (length < 4 || length > IPV4_OPTIONS_MAX)
		return REASON_MALFORMED;
	if (load(packet, ETHERNET + sizeof(struct iphdr), options, length))
		return REASON_MALFORMED;
	for (int i = 0; i < IPV4_OPTIONS_MAX && at < length; i++) {
		__u8 kind = options[at & 63];

		if (kind == 0)
			return REASON_FLOW;
		if (kind == 1) {
			at++;
			continue;
		}
		if (kind == 131 || kind == 137)
			return REASON_SOURCE_ROUTE;
		if (options[(at + 1) & 63] < 2)
			return REASON_MALFORMED;
		at += options[(at + 1) & 63];
	}
	return at == length ? REASON_FLOW : REASON_MALFORMED;
}

/* The type that asks, of a type that asks or answers by an identifier; 0: neither. These have flows, as UDP has. */
static __always_inline __u8 query_of(__u8 protocol, __u8 type)
{
	if (protocol == IPPROTO_ICMP) {
		switch (type) {
		case ICMP_ECHO:
		case ICMP_ECHOREPLY:
			return ICMP_ECHO;
		case ICMP_TIMESTAMP:
		case ICMP_TIMESTAMPREPLY:
			return ICMP_TIMESTAMP;
		case ICMP_EXT_ECHO:
		case ICMP_EXT_ECHOREPLY:
			return ICMP_EXT_ECHO;
		default:
			return 0;
		}
	}
	switch (type) {
	case ICMPV6_ECHO_REQUEST:
	case ICMPV6_ECHO_REPLY:
		return ICMPV6_ECHO_REQUEST;
	case ICMPV6_EXT_ECHO_REQUEST:
	case ICMPV6_EXT_ECHO_REPLY:
		return ICMPV6_EXT_ECHO_REQUEST;
	default:
		return 0;
	}
}

static __always_inline int is_icmp(__u8 protocol)
{
	return protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6;
}

static __always_inline int is_icmp_error(const struct frame *f)
{
	if (f->protocol == IPPROTO_ICMP)
		return f->icmp_type == ICMP_DEST_UNREACH || f->icmp_type == ICMP_TIME_EXCEEDED ||
		       f->icmp_type == ICMP_PARAMETERPROB;
	return f->protocol == IPPROTO_ICMPV6 && f->icmp_type >= ICMPV6_DEST_UNREACH && f->icmp_type <= ICMPV6_PARAMPROB;
}

static __always_inline enum reason parse_l4(void *data, void *data_end, __u32 offset, struct frame *f)
{
	void *at = data + offset;

	f->l4_offset = offset;
	if (f->protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = at;

		if ((void *)(tcp + 1) > data_end || tcp->doff < 5 || offset + tcp->doff * 4 > f->end)
			return REASON_MALFORMED;
		f->source_port = tcp->source;
		f->destination_port = tcp->dest;
		f->sequence = tcp->seq;
		f->tcp_flags = ((__u8 *)tcp)[13];
		return REASON_FLOW;
	}
	if (f->protocol == IPPROTO_UDP || f->protocol == IPPROTO_SCTP) {
		struct udphdr *udp = at; /* SCTP's ports stand at the same place */

		/* RFC 9260, 3: a common header of 12 octets. */
		if ((void *)(udp + 1) + (f->protocol == IPPROTO_SCTP ? 4 : 0) > data_end ||
		    offset + (f->protocol == IPPROTO_SCTP ? 12 : 8) > f->end)
			return REASON_MALFORMED;
		f->source_port = udp->source;
		f->destination_port = udp->dest;
		return REASON_FLOW;
	}
	if ((f->protocol == IPPROTO_ICMP && f->family == 4) || (f->protocol == IPPROTO_ICMPV6 && f->family == 6)) {
		struct icmp_header *icmp = at;

		if ((void *)(icmp + 1) > data_end || offset + sizeof(*icmp) > f->end)
			return REASON_MALFORMED;
		f->icmp_type = icmp->type;
		f->icmp_code = icmp->code;
		f->source_port = icmp->identifier;
		f->destination_port = 0;
		if (f->family == 6 && icmp->type >= ND_ROUTER_SOLICIT && icmp->type <= ND_REDIRECT)
			return REASON_ND;
		if (f->family == 6 && (icmp->type == MLD_REPORT || icmp->type == MLD_DONE || icmp->type == MLD2_REPORT))
			return REASON_ND;
		return REASON_FLOW;
	}
	return REASON_PROTOCOL;
}

/* A fragment of `length` octets that begins at `begin`. `before`: octets of headers that count in the length of the
 * whole, as the header of IPv4 does (RFC 791) and that of IPv6 does not (RFC 8200).
 */
static __always_inline enum reason place_fragment(struct frame *f, __u32 begin, int more, __s32 length, __u32 before)
{
	if (length <= 0 || (more && length & 7) || before + begin + length > 65535)
		return REASON_FRAGMENT_MALFORMED;
	f->fragment = begin ? FRAGMENT_LATER : FRAGMENT_FIRST;
	f->fragment_begin = begin;
	f->fragment_end = begin + length;
	f->fragment_last = !more;
	return REASON_FLOW;
}

/* A first fragment must hold its whole L4 header (RFC 1858, RFC 7112). Errors are short (RFC 1812, 4.3.2.3; RFC
 * 4443, 2.4), and neighbour discovery is never fragmented (RFC 6980).
 */
static __always_inline enum reason whole_header(const struct frame *f, enum reason reason)
{
	if (reason == REASON_MALFORMED)
		return REASON_FRAGMENT_TINY;
	if (reason == REASON_ND || (reason == REASON_FLOW && is_icmp_error(f)))
		return REASON_FRAGMENT_MALFORMED;
	return reason;
}

static __always_inline enum reason parse_ipv4(PACKET *packet, void *data, void *data_end, struct frame *f)
{
	struct iphdr *ip = data + ETHERNET;
	enum reason reason;
	__u32 header, total;

	if ((void *)(ip + 1) > data_end || ip->version != 4 || ip->ihl < 5)
		return REASON_MALFORMED;
	set_v4(&f->source, ip->saddr);
	set_v4(&f->destination, ip->daddr);
	f->family = 4;
	f->protocol = ip->protocol;
	f->hop_limit = ip->ttl;
	header = ip->ihl * 4;
	total = bpf_ntohs(ip->tot_len);
	if ((total < header && !(is_segmented_later(packet) && total == 0)) || ETHERNET + total > f->octets)
		return REASON_MALFORMED; /* total 0 with GSO: more than 64 KiB in one piece (BIG TCP) */
	f->end = total ? ETHERNET + total : f->octets;
	if (header > sizeof(*ip)) {
		enum reason bad = walk_options(packet, header - sizeof(*ip));

		if (bad != REASON_FLOW)
			return bad;
	}
	if (ip->frag_off & bpf_htons(0x3fff)) { /* more fragments, or an offset */
		__u32 field = bpf_ntohs(ip->frag_off);
		enum reason bad =
			place_fragment(f, (field & 0x1fff) * 8, field & 0x2000, (__s32)total - header, header);

		f->fragment_id = ip->id;
		if (bad != REASON_FLOW || f->fragment == FRAGMENT_LATER)
			return bad;
	}
	reason = parse_l4(data, data_end, ETHERNET + header, f);
	return f->fragment ? whole_header(f, reason) : reason;
}

static __always_inline enum reason parse_ipv6(PACKET *packet, void *data, void *data_end, struct frame *f)
{
	struct ipv6hdr *ip = data + ETHERNET;
	__u32 offset = ETHERNET + sizeof(*ip);
	enum reason reason;
	__u8 next;

	if ((void *)(ip + 1) > data_end || ip->version != 6)
		return REASON_MALFORMED;
	__builtin_memcpy(&f->source, &ip->saddr, 16);
	__builtin_memcpy(&f->destination, &ip->daddr, 16);
	f->family = 6;
	f->hop_limit = ip->hop_limit;
	next = ip->nexthdr;
	f->protocol = next;
	f->end = ip->payload_len || !is_segmented_later(packet) ? offset + bpf_ntohs(ip->payload_len)
								: f->octets; /* BIG TCP */
	if (f->end > f->octets)
		return REASON_MALFORMED;
	/* Never on a wire (RFC 4038, 4.2); here it would pass for the IPv4 address, which is kept in this form. */
	if (is_mapped(&f->source) || is_mapped(&f->destination))
		return REASON_MALFORMED;
	for (int i = 0; i <= EXTENSIONS_MAX; i++) {
		__u8 *extension = data + offset;

		if (next != IPPROTO_HOPOPTS && next != IPPROTO_DSTOPTS && next != IPPROTO_ROUTING &&
		    next != IPPROTO_FRAGMENT) {
			f->protocol = next;
			reason = parse_l4(data, data_end, offset, f);
			return f->fragment ? whole_header(f, reason) : reason;
		}
		if (i == EXTENSIONS_MAX || offset > PULL - 16)
			return REASON_EXTENSION_HEADER;
		if ((void *)(extension + 8) > data_end)
			return f->fragment ? REASON_FRAGMENT_TINY : REASON_MALFORMED;
		if (next == IPPROTO_ROUTING && extension[3])
			return REASON_SOURCE_ROUTE; /* segments left: it goes elsewhere first */
		if (next == IPPROTO_FRAGMENT) {
			struct fragment_header *header = (void *)extension;
			__u32 field = bpf_ntohs(header->offset);

			if (f->fragment)
				return REASON_EXTENSION_HEADER; /* a fragment of a fragment */
			f->protocol = header->next;
			if (!(field & 0xfff9))
				return REASON_FRAGMENT_ATOMIC;
			reason =
				place_fragment(f, field & 0xfff8, field & 1, (__s32)(f->end - offset - sizeof(*header)),
					       offset - ETHERNET - sizeof(*ip));
			f->fragment_id = header->id;
			if (reason != REASON_FLOW || f->fragment == FRAGMENT_LATER)
				return reason;
			next = header->next;
			offset += sizeof(*header);
			continue;
		}
		next = extension[0];
		offset += ((__u32)extension[1] + 1) * 8;
		if (offset > PULL - 8)
			return REASON_EXTENSION_HEADER;
	}
	return REASON_EXTENSION_HEADER;
}

/* Whether the frame is understood, and what is in it. */
SEPARATE enum reason parse(PACKET *packet, struct frame *f)
{
	void *data = (void *)(long)packet->data, *data_end = (void *)(long)packet->data_end;
	struct ethhdr *ethernet = data;

	if (!f)
		return REASON_INTERNAL;

	f->octets = octets_of(packet);
	if (has_tag_aside(packet))
		return REASON_TAGGED;
	if ((void *)(ethernet + 1) > data_end)
		return REASON_MALFORMED;
	switch (ethernet->h_proto) {
	case bpf_htons(ETH_P_IP):
		return parse_ipv4(packet, data, data_end, f);
	case bpf_htons(ETH_P_IPV6):
		return parse_ipv6(packet, data, data_end, f);
	case bpf_htons(ETH_P_ARP):
		return REASON_ARP;
	case bpf_htons(ETH_P_8021Q):
	case bpf_htons(ETH_P_8021AD):
		return REASON_TAGGED;
	default:
		return REASON_ETHERTYPE;
	}
}

/* The headers must be linear before they can be read in place; a sender can arrange that they are not. */
static __always_inline void make_linear(PACKET *packet)
{
#ifdef EARLY
	(void)packet; /* drivers see to it */
#else
	__u32 want = packet->len < PULL ? packet->len : PULL;

	if ((long)packet->data_end - (long)packet->data < want)
		bpf_skb_pull_data(packet, want);
#endif
}

#endif
