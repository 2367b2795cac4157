// Go's net/rpc over a UNIX socket, with its own encoding, gob.
//
//	net_rpc serve PATH
//	net_rpc call PATH | pipeline PATH | call_many PATH CONNECTIONS
//
// The latter three say `ready`, read seconds, a line each, measure for so long, and print the samples as JSON.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"net/rpc"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

const window = 128

var text = strings.Repeat("x", 64)

type Bench struct{}

func (Bench) Echo(text string, answer *string) error {
	*answer = text
	return nil
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(path string) {
	check(rpc.Register(Bench{}))
	listener, err := net.Listen("unix", path)
	check(err)
	rpc.Accept(listener)
}

func dial(path string) *rpc.Client {
	end := time.Now().Add(15 * time.Second)
	for {
		client, err := rpc.Dial("unix", path)
		if err == nil {
			return client
		}
		if time.Now().After(end) {
			check(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func echo(client *rpc.Client) {
	var answer string
	check(client.Call("Bench.Echo", text, &answer))
	if answer != text {
		check(fmt.Errorf("the answer is %q", answer))
	}
}

func timed(client *rpc.Client, duration time.Duration) []float64 {
	var samples []float64
	for begin := time.Now(); time.Since(begin) < duration; {
		start := time.Now()
		echo(client)
		samples = append(samples, time.Since(start).Seconds())
	}
	return samples
}

func pipelined(client *rpc.Client, duration time.Duration) []float64 {
	done := make(chan *rpc.Call, window)
	start := func() { client.Go("Bench.Echo", text, new(string), done) }
	finish := func() {
		call := <-done
		check(call.Error)
		if *call.Reply.(*string) != text {
			check(fmt.Errorf("the answer is %q", *call.Reply.(*string)))
		}
	}
	begin, count := time.Now(), window
	for i := 0; i < window; i++ {
		start()
	}
	for time.Since(begin) < duration {
		for i := 0; i < window; i++ {
			finish()
			start()
		}
		count += window
	}
	for i := 0; i < window; i++ {
		finish()
	}
	return []float64{time.Since(begin).Seconds() / float64(count)}
}

func many(clients []*rpc.Client, duration time.Duration) []float64 {
	var group sync.WaitGroup
	counts := make([]int, len(clients))
	begin := time.Now()
	for i := range clients {
		group.Add(1)
		go func(i int) {
			defer group.Done()
			for time.Since(begin) < duration {
				echo(clients[i])
				counts[i]++
			}
		}(i)
	}
	group.Wait()
	total := 0
	for _, count := range counts {
		total += count
	}
	return []float64{time.Since(begin).Seconds() / float64(total)}
}

func main() {
	role, path := os.Args[1], os.Args[2]
	if role == "serve" {
		serve(path)
	}
	count := 1
	if role == "call_many" {
		number, err := strconv.Atoi(os.Args[3])
		check(err)
		count = number
	}
	var clients []*rpc.Client
	for i := 0; i < count; i++ {
		clients = append(clients, dial(path))
		echo(clients[i])
	}
	fmt.Println("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		seconds, err := strconv.ParseFloat(lines.Text(), 64)
		check(err)
		duration := time.Duration(seconds * float64(time.Second))
		var samples []float64
		switch role {
		case "call":
			samples = timed(clients[0], duration)
		case "pipeline":
			samples = pipelined(clients[0], duration)
		default:
			samples = many(clients, duration)
		}
		check(json.NewEncoder(os.Stdout).Encode(samples))
	}
}
