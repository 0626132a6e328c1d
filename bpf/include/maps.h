/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The kernel maps. All are pinned by name under the versioned pin directory, so that they outlive the
 * process and both programs share them. Sizes are defaults; user space sets them before the first load.
 *
 * Grants and flows are plain hashes with budgets, never LRU: full is an error that we see.
 */
#ifndef NAMEGATE_MAPS_H
#define NAMEGATE_MAPS_H

#include "abi.h"
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define PINNED __uint(pinning, LIBBPF_PIN_BY_NAME)

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct endpoint);
	PINNED;
} endpoints SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4097); /* row 0 is the pool that all share */
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct budget);
	PINNED;
} budgets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct limits);
	PINNED;
} limits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 4097);
	__type(key, __u32);
	__type(value, struct bucket);
	PINNED;
} buckets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct learned_mac);
	PINNED;
} macs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct bridge);
	PINNED;
} bridges SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__type(key, struct flow_key);
	__type(value, struct flow);
	PINNED;
} flows SEC(".maps");

/* endpoint id -> its row in `budgets`: a flow names only the endpoint. Also of endpoints that have no interface now. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, __u32);
	PINNED;
} slots SEC(".maps");

/* The proxy's last sign of life, and what acts in its stead. Written by bpf/beat.bpf.c alone: the kernel cancels the
 * timer when user space writes the row.
 */
struct heartbeat {
	__u64 last_ns;
	__u64 swept; /* flows, since the last beat */
	struct bpf_timer timer;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct heartbeat);
	PINNED;
} heartbeat SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct fragment_key);
	__type(value, struct first_fragment);
	PINNED;
} fragments SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct grant_key);
	__type(value, struct grant);
	PINNED;
} grants SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct address);
	__type(value, __u32);
	PINNED;
} peers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 524288);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct peer_bits_key);
	__type(value, struct group_bits);
	PINNED;
} peer_bits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct service_key);
	__type(value, struct service);
	PINNED;
} services SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct cidr4_key);
	__type(value, struct group_bits);
	PINNED;
} cidr4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct cidr6_key);
	__type(value, struct group_bits);
	PINNED;
} cidr6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct port_key);
	__type(value, struct port_row);
	PINNED;
} ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct port_block_key);
	__type(value, struct port_row);
	PINNED;
} port_blocks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, struct steer_key);
	__type(value, struct steer);
	PINNED;
} dns_to SEC(".maps"), dns_from SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192); /* the ports that the proxy takes are fewer */
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct proxy_socket_key);
	__type(value, struct proxy_socket);
	PINNED;
} proxy_sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTER_ROWS);
	__type(key, __u32);
	__type(value, struct counter);
	PINNED;
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 512 * 1024);
	PINNED;
} events SEC(".maps");

#endif
