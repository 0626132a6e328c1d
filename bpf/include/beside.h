/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The proxy beside the workload, in one network namespace with it: both programs are on the pod's own interface, what
 * the pod sends at its egress. Nothing is steered there: local sockets or FIB rules bring queries to the proxy. What
 * the proxy asks its own servers leaves by the same interface, so it must be told from what the workload sends.
 */
#ifndef NAMEGATE_BESIDE_H
#define NAMEGATE_BESIDE_H

#include "context.h"

static __always_inline int is_beside(void)
{
	return proxy_port_first != 0;
}

/* The proxy's row for a conversation, if it is one of its own. */
static __always_inline struct proxy_socket *proxy_socket_of(const struct address *remote, __be16 remote_port,
							    __be16 local_port, __u8 protocol)
{
	__u16 port = bpf_ntohs(local_port);
	struct proxy_socket_key key = {.remote_port = remote_port, .local_port = local_port, .protocol = protocol};

	if (port < proxy_port_first || port > proxy_port_last)
		return 0;
	key.remote = *remote;
	return bpf_map_lookup_elem(&proxy_sockets, &key);
}

#ifndef EARLY
/* Whether the proxy sent it: its ports are those of a conversation of the proxy, and it comes from that very socket. A
 * socket's cookie can't be chosen, and none is given twice: whoever binds the port once it is free has another one.
 */
static __always_inline int is_of_proxy(struct __sk_buff *skb, const struct context *c)
{
	const struct frame *f = &c->frame;
	struct proxy_socket *own;

	if (f->protocol != IPPROTO_UDP && f->protocol != IPPROTO_TCP)
		return 0;
	own = proxy_socket_of(&f->destination, f->destination_port, f->source_port, f->protocol);
	return own && own->cookie && own->cookie == bpf_get_socket_cookie(skb);
}

/* Whether it is for the proxy: an answer to what it asked. Once its socket is gone, it is for nobody, or for whoever
 * has bound the port since, who can't have asked.
 */
static __always_inline int is_to_proxy(const struct context *c)
{
	const struct frame *f = &c->frame;

	if (f->protocol != IPPROTO_UDP && f->protocol != IPPROTO_TCP)
		return 0;
	return proxy_socket_of(&f->source, f->source_port, f->destination_port, f->protocol) != 0;
}
#endif

#endif
