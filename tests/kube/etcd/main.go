// etcd, from the module go.etcd.io/etcd/server/v3: the store of the API server of these tests.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() {
	etcdmain.Main(os.Args)
}
