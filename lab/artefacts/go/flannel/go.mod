module kubeadm-ipvs/build/flannel

go 1.25.9

require github.com/flannel-io/flannel v0.28.9

// This SDK isn't available as a module, and only one backend uses it. With our stubs, that backend fails with
// an error that explains why.
replace (
	github.com/tencentcloud/tencentcloud-sdk-go/tencentcloud/common => ./no-tencent/common
	github.com/tencentcloud/tencentcloud-sdk-go/tencentcloud/vpc => ./no-tencent/vpc
)
