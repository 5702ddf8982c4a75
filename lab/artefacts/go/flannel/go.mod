module kubeadm-ipvs/build/flannel

go 1.25.9

require github.com/flannel-io/flannel v0.28.9

// Can't be had as a module, and used by one backend only: our stubs make that backend fail with a reason.
replace (
	github.com/tencentcloud/tencentcloud-sdk-go/tencentcloud/common => ./no-tencent/common
	github.com/tencentcloud/tencentcloud-sdk-go/tencentcloud/vpc => ./no-tencent/vpc
)
