/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A refusal that the application sees at once: TCP RST, ICMP and ICMPv6 "administratively prohibited", built from the
 * refused frame and handed to the pod with bpf_redirect_peer (a plain redirect would run into our own egress program).
 * On the pod's own interface it comes in by that again, where to_pod knows it by a mark.
 */
#ifndef NAMEGATE_REJECT_H
#define NAMEGATE_REJECT_H

#include "verdict.h"

#define DROP 2 /* TC_ACT_SHOT */

static __always_inline __u16 fold(__s64 sum)
{
	__u64 s = sum;

	s = (s & 0xffff) + (s >> 16 & 0xffff) + (s >> 32 & 0xffff);
	s = (s & 0xffff) + (s >> 16);
	s = (s & 0xffff) + (s >> 16);
	return ~s;
}

static __always_inline void turn_ethernet(struct ethhdr *e)
{
	__u8 mac[6];

	__builtin_memcpy(mac, e->h_dest, 6);
	__builtin_memcpy(e->h_dest, e->h_source, 6);
	__builtin_memcpy(e->h_source, mac, 6);
}

/* RFC 9293, 3.10.7.1: the reset takes its sequence number from the ACK, or acknowledges what came. */
static __always_inline void make_reset(const struct tcphdr *from, struct tcphdr *to, __u32 payload)
{
	__builtin_memset(to, 0, sizeof(*to));
	to->source = from->dest;
	to->dest = from->source;
	to->doff = 5;
	to->rst = 1;
	if (from->ack) {
		to->seq = from->ack_seq;
	} else {
		to->ack = 1;
		to->ack_seq = bpf_htonl(bpf_ntohl(from->seq) + payload + from->syn + from->fin);
	}
}

/* The two octets in front keep the IP header aligned; packed structs on the stack are refused by the verifier. */
struct reset4 {
	__u16 pad;
	struct ethhdr ethernet;
	struct iphdr ip;
	struct tcphdr tcp;
};

struct reset6 {
	__u16 pad;
	struct ethhdr ethernet;
	struct ipv6hdr ip;
	struct tcphdr tcp;
};

struct pseudo4 {
	__be32 source, destination;
	__u8 zero, protocol;
	__be16 length;
};

struct pseudo6 {
	struct in6_addr source, destination;
	__be32 length, next;
};

static __always_inline int hand_over(struct __sk_buff *skb)
{
	if (!is_beside()) {
		if (inbound_mark)
			skb->mark = inbound_mark;
		return bpf_redirect_peer(skb->ifindex, 0);
	}
	skb->mark = reject_mark;
	return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
}

SEPARATE int reject_tcp4(struct __sk_buff *skb, __u32 l4_offset)
{
	struct reset4 out;
	struct tcphdr refused;
	struct pseudo4 pseudo = {};
	__be32 swap;
	__u32 payload;

	if (bpf_skb_load_bytes(skb, 0, &out.ethernet, sizeof(out.ethernet) + sizeof(out.ip)) ||
	    bpf_skb_load_bytes(skb, l4_offset, &refused, sizeof(refused)) || refused.rst)
		return DROP;
	payload = bpf_ntohs(out.ip.tot_len) - (l4_offset - ETHERNET) - refused.doff * 4;
	make_reset(&refused, &out.tcp, payload);
	turn_ethernet(&out.ethernet);
	swap = out.ip.saddr;
	out.ip.saddr = out.ip.daddr;
	out.ip.daddr = swap;
	out.ip.ihl = 5;
	out.ip.tos = 0;
	out.ip.tot_len = bpf_htons(sizeof(out.ip) + sizeof(out.tcp));
	out.ip.id = 0;
	out.ip.frag_off = 0;
	out.ip.ttl = 64;
	out.ip.check = 0;
	out.ip.check = fold(bpf_csum_diff(0, 0, (void *)&out.ip, sizeof(out.ip), 0));
	pseudo.source = out.ip.saddr;
	pseudo.destination = out.ip.daddr;
	pseudo.protocol = IPPROTO_TCP;
	pseudo.length = bpf_htons(sizeof(out.tcp));
	refused = out.tcp;
	out.tcp.check = fold(bpf_csum_diff(0, 0, (void *)&refused, sizeof(refused),
					   bpf_csum_diff(0, 0, (void *)&pseudo, sizeof(pseudo), 0)));
	if (bpf_skb_change_tail(skb, sizeof(out) - 2, 0) ||
	    bpf_skb_store_bytes(skb, 0, &out.ethernet, sizeof(out) - 2, BPF_F_INVALIDATE_HASH))
		return DROP;
	return hand_over(skb);
}

SEPARATE int reject_tcp6(struct __sk_buff *skb, __u32 l4_offset)
{
	struct reset6 out;
	struct tcphdr refused;
	struct pseudo6 pseudo = {};
	struct in6_addr swap;
	__u32 payload;

	if (bpf_skb_load_bytes(skb, 0, &out.ethernet, sizeof(out.ethernet) + sizeof(out.ip)) ||
	    bpf_skb_load_bytes(skb, l4_offset, &refused, sizeof(refused)) || refused.rst)
		return DROP;
	payload = bpf_ntohs(out.ip.payload_len) - (l4_offset - ETHERNET - sizeof(out.ip)) - refused.doff * 4;
	make_reset(&refused, &out.tcp, payload);
	turn_ethernet(&out.ethernet);
	swap = out.ip.saddr;
	out.ip.saddr = out.ip.daddr;
	out.ip.daddr = swap;
	out.ip.payload_len = bpf_htons(sizeof(out.tcp));
	out.ip.nexthdr = IPPROTO_TCP;
	out.ip.hop_limit = 64;
	pseudo.source = out.ip.saddr;
	pseudo.destination = out.ip.daddr;
	pseudo.length = bpf_htonl(sizeof(out.tcp));
	pseudo.next = bpf_htonl(IPPROTO_TCP);
	refused = out.tcp;
	out.tcp.check = fold(bpf_csum_diff(0, 0, (void *)&refused, sizeof(refused),
					   bpf_csum_diff(0, 0, (void *)&pseudo, sizeof(pseudo), 0)));
	if (bpf_skb_change_tail(skb, sizeof(out) - 2, 0) ||
	    bpf_skb_store_bytes(skb, 0, &out.ethernet, sizeof(out) - 2, BPF_F_INVALIDATE_HASH))
		return DROP;
	return hand_over(skb);
}

/* RFC 792 quotes the header and 64 bits, RFC 4443 as much as fits: the header and 8 octets are enough to find the
 * socket in both.
 */
struct error4 {
	__u16 pad;
	struct ethhdr ethernet;
	struct iphdr ip;
	struct icmp_header icmp;
	__u32 quoted[7];
};

struct error6 {
	__u16 pad;
	struct ethhdr ethernet;
	struct ipv6hdr ip;
	struct icmp6hdr icmp;
	__u32 quoted[12];
};

/* Room in front of the refused packet for the error and its own IP header: behind the link's header, for
 * bpf_skb_change_head leaves the network header where it was. Who gets the frame by bpf_redirect_peer does not look
 * for it again, and would read the quoted packet as the one that came (6.18).
 */
static __always_inline long make_room(struct __sk_buff *skb, __s32 octets)
{
	return bpf_skb_adjust_room(skb, octets, BPF_ADJ_ROOM_MAC, 0);
}

SEPARATE int reject_icmp4(struct __sk_buff *skb)
{
	struct error4 out = {};
	__u32 sum[9];
	const struct iphdr *refused = (void *)out.quoted;

	if (bpf_skb_load_bytes(skb, 0, &out.ethernet, sizeof(out.ethernet)) ||
	    bpf_skb_load_bytes(skb, ETHERNET, out.quoted, sizeof(out.quoted)) || refused->ihl != 5)
		return DROP; /* with options the ports lie further on: silence */
	turn_ethernet(&out.ethernet);
	out.ip.version = 4;
	out.ip.ihl = 5;
	out.ip.tos = 0xc0; /* internetwork control, RFC 1812 4.3.2.5 */
	out.ip.tot_len = bpf_htons(sizeof(out.ip) + sizeof(out.icmp) + sizeof(out.quoted));
	out.ip.ttl = 64;
	out.ip.protocol = IPPROTO_ICMP;
	out.ip.saddr = refused->daddr;
	out.ip.daddr = refused->saddr;
	out.ip.check = fold(bpf_csum_diff(0, 0, (void *)&out.ip, sizeof(out.ip), 0));
	out.icmp.type = ICMP_DEST_UNREACH;
	out.icmp.code = ICMP_PKT_FILTERED;
	__builtin_memcpy(sum, &out.icmp, sizeof(sum));
	out.icmp.checksum = fold(bpf_csum_diff(0, 0, sum, sizeof(sum), 0));
	if (bpf_skb_change_tail(skb, ETHERNET + sizeof(out.quoted), 0) ||
	    make_room(skb, sizeof(out.ip) + sizeof(out.icmp)) ||
	    bpf_skb_store_bytes(skb, 0, &out.ethernet, sizeof(out) - 2, BPF_F_INVALIDATE_HASH))
		return DROP;
	return hand_over(skb);
}

SEPARATE int reject_icmp6(struct __sk_buff *skb)
{
	struct error6 out = {};
	__u32 sum[14];
	struct pseudo6 pseudo = {};
	const struct ipv6hdr *refused = (void *)out.quoted;

	if (bpf_skb_load_bytes(skb, 0, &out.ethernet, sizeof(out.ethernet)) ||
	    bpf_skb_load_bytes(skb, ETHERNET, out.quoted, sizeof(out.quoted)))
		return DROP;
	turn_ethernet(&out.ethernet);
	out.ip.version = 6;
	out.ip.payload_len = bpf_htons(sizeof(out.icmp) + sizeof(out.quoted));
	out.ip.nexthdr = IPPROTO_ICMPV6;
	out.ip.hop_limit = 255;
	out.ip.saddr = refused->daddr;
	out.ip.daddr = refused->saddr;
	out.icmp.icmp6_type = ICMPV6_DEST_UNREACH;
	out.icmp.icmp6_code = ICMPV6_ADM_PROHIBITED;
	pseudo.source = out.ip.saddr;
	pseudo.destination = out.ip.daddr;
	pseudo.length = bpf_htonl(sizeof(out.icmp) + sizeof(out.quoted));
	pseudo.next = bpf_htonl(IPPROTO_ICMPV6);
	__builtin_memcpy(sum, &out.icmp, sizeof(sum));
	out.icmp.icmp6_cksum =
		fold(bpf_csum_diff(0, 0, sum, sizeof(sum), bpf_csum_diff(0, 0, (void *)&pseudo, sizeof(pseudo), 0)));
	if (bpf_skb_change_tail(skb, ETHERNET + sizeof(out.quoted), 0) ||
	    make_room(skb, sizeof(out.ip) + sizeof(out.icmp)) ||
	    bpf_skb_store_bytes(skb, 0, &out.ethernet, sizeof(out) - 2, BPF_F_INVALIDATE_HASH))
		return DROP;
	return hand_over(skb);
}

/* Whether a refusal may be sent. */
static __always_inline int may_reject(const struct context *c, enum reason reason)
{
	struct bucket *bucket;

	if (c->probe || !is_answered(c, reason))
		return 0;
	bucket = bucket_of(c);
	if (!bucket || bucket->rejects >= rejects_per_second)
		return 0;
	bucket->rejects++;
	return 1;
}

static __always_inline int reject(struct __sk_buff *skb, const struct context *c)
{
	if (c->frame.family == 4)
		return c->frame.protocol == IPPROTO_TCP ? reject_tcp4(skb, c->frame.l4_offset) : reject_icmp4(skb);
	return c->frame.protocol == IPPROTO_TCP ? reject_tcp6(skb, c->frame.l4_offset) : reject_icmp6(skb);
}

#endif
