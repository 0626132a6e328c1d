// Looks a name up with Go's own resolver, and connects if a port is given: look NAME any|4|6 [PORT]
//
// Writes the same as look.c.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

func main() {
	name, network := os.Args[1], map[string]string{"any": "ip", "4": "ip4", "6": "ip6"}[os.Args[2]]
	resolver := net.Resolver{PreferGo: true}
	context, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	start := time.Now()
	found, err := resolver.LookupIP(context, network, name)
	took := time.Since(start).Milliseconds()
	var failed *net.DNSError
	switch {
	case errors.As(err, &failed) && failed.IsNotFound:
		fmt.Println("error not found")
	case err != nil:
		fmt.Println("error", err)
	}
	reached := false
	for _, address := range found {
		fmt.Println("address", address)
	}
	for _, address := range found {
		if len(os.Args) < 4 || reached {
			break
		}
		connection, err := net.DialTimeout("tcp", net.JoinHostPort(address.String(), os.Args[3]), 5*time.Second)
		if err == nil {
			connection.Close()
			reached = true
		} else {
			fmt.Println("not reached:", err)
		}
	}
	if reached {
		fmt.Println("reached")
	}
	fmt.Println("ms", took)
}
