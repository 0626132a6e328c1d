/* SPDX-License-Identifier: Apache-2.0 */
/* Headers that the kernel programs include, before `const` means nothing. */
#include <stddef.h>
#include <string.h>
#include <asm/byteorder.h>
#include <linux/icmpv6.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
